"""The alignment loss against the published numbers, and what a batch may not do to a sample."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from catalog.positions import POSITION_SCALE, position_grid
from trainer.align import SpatialForcing, Targets, pool

GOLDEN = Path(__file__).parent / "data" / "golden"
CHANNELS, WIDTH = 64, 48


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "public_align.safetensors")


def published(golden: dict[str, torch.Tensor], norm: int) -> SpatialForcing:
    forcing = SpatialForcing(WIDTH, CHANNELS, "layer" if norm else "none")
    prefix = f"projector_norm{norm}."
    forcing.load_state_dict({k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)})
    return forcing


@pytest.mark.parametrize("positions", [False, True])
def test_targets_are_the_published_ones(golden: dict[str, torch.Tensor], positions: bool) -> None:
    targets = Targets(CHANNELS, (37, 37), (37, 37), (16, 16), positions)
    made = targets(golden["teacher_tokens"]).flatten(1, 2)
    torch.testing.assert_close(made, golden[f"target_pe{int(positions)}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", [0, 1])
def test_loss_is_the_published_one(golden: dict[str, torch.Tensor], norm: int) -> None:
    result = published(golden, norm)(golden[f"vision_hidden_norm{norm}"], golden["target_pe1"])
    torch.testing.assert_close(result.total, golden[f"loss_norm{norm}"][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(result.per_sample.mean(), result.total)
    # Views apart or one after the other: the same tokens, the same loss.
    apart = [golden[name].unflatten(1, (2, 256)) for name in (f"vision_hidden_norm{norm}", "target_pe1")]
    torch.testing.assert_close(published(golden, norm)(*apart).total, result.total)


def test_alignment_of_the_published_openvla_step() -> None:
    weights = load_file(GOLDEN / "public_openvla_step_weights.safetensors")
    batch = load_file(GOLDEN / "public_openvla_step_batch.safetensors")
    sizes = json.loads((GOLDEN / "public_openvla_step.json").read_text())
    forcing = SpatialForcing(32, 64, sizes["norm"])
    forcing.load_state_dict(
        {k.removeprefix("align_projector."): v.float() for k, v in weights.items() if k.startswith("align_projector.")}
    )
    student = batch["hidden_layer"][:, 2:514]  # this tree shifts the image tokens by one position
    result = forcing(student, batch["target"])
    assert result.total.item() == pytest.approx(sizes["align_loss"], abs=1e-5)
    result.total.backward()
    scale = sizes["coefficient"]
    for name, parameter in forcing.named_parameters():
        assert parameter.grad is not None
        assert scale * float(parameter.grad.norm()) == pytest.approx(sizes["gradient_norms"][f"align.{name}"], rel=0.01)


def test_positions_go_through_the_same_grids_as_the_features() -> None:
    native, stored, student, channels = (9, 12), (6, 8), (4, 4), 8
    features = torch.randn(2, 3, *native, channels, generator=torch.Generator().manual_seed(0))
    positions = torch.from_numpy(position_grid(*native, channels)) * POSITION_SCALE
    whole = pool(pool(features + positions, stored), student).flatten(2, 3)
    cached = pool(features, stored).flatten(2, 3)
    torch.testing.assert_close(Targets(channels, native, stored, student)(cached), whole, atol=1e-6, rtol=0)
    assert not Targets(channels, native, stored, student).state_dict()


def test_a_sample_never_depends_on_its_batch_mates() -> None:
    torch.manual_seed(0)
    forcing = SpatialForcing(16, 8)
    student = torch.randn(3, 2, 5, 16, requires_grad=True)
    targets = torch.randn(3, 2, 5, 8)
    mask = torch.rand(3, 2, 5) > 0.4
    together = forcing(student, targets, mask)
    (gradient,) = torch.autograd.grad(together.per_sample[1], student)
    assert gradient[1].abs().sum() > 0
    assert gradient[0].abs().sum() == gradient[2].abs().sum() == 0
    for sample in range(3):
        alone = forcing(student[sample : sample + 1], targets[sample : sample + 1], mask[sample : sample + 1])
        torch.testing.assert_close(alone.total, together.per_sample[sample], atol=1e-6, rtol=0)
        # ... nor on its own masked tokens, whatever they hold.
        spoilt = torch.where(mask.unsqueeze(-1), targets, math.nan)
        torch.testing.assert_close(forcing(student, spoilt, mask).per_sample, together.per_sample)


@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_samples_without_valid_tokens_contribute_nothing(norm: str) -> None:
    torch.manual_seed(0)
    forcing = SpatialForcing(16, 8, norm)  # type: ignore[arg-type]
    student = torch.randn(3, 2, 5, 16, requires_grad=True)
    targets = torch.randn(3, 2, 5, 8)
    views = torch.tensor([[True, True], [False, False], [True, False]])
    targets[1] = targets[2, 1] = math.nan
    result = forcing(student, targets, views)
    assert result.samples.tolist() == [True, False, True]
    assert result.per_sample[1] == 0
    torch.testing.assert_close(result.total, (result.per_sample[0] + result.per_sample[2]) / 2)
    result.total.backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()
    assert student.grad[1].abs().sum() == 0 and student.grad[2, 1].abs().sum() == 0
    assert student.grad[2, 0].abs().sum() > 0

    nothing = forcing(student, targets, torch.zeros(3, 2, dtype=torch.bool))
    assert nothing.total == 0
    nothing.total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in forcing.parameters())  # type: ignore[arg-type]


def test_batch_norm_counts_the_valid_tokens_alone() -> None:
    torch.manual_seed(0)
    forcing = SpatialForcing(16, 8, "batch")
    student, targets = torch.randn(2, 6, 16) + 3, torch.randn(2, 6, 8)
    mask = torch.rand(2, 6) > 0.5
    wild = torch.where(mask.unsqueeze(-1), student, 1e6)
    torch.testing.assert_close(forcing(wild, targets, mask).per_sample, forcing(student, targets, mask).per_sample)
    mean = student[mask].mean(0)  # twice, with the momentum of 0.1
    torch.testing.assert_close(forcing.vlm_norm.running_mean, 0.19 * mean)


def test_cosine_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    forcing = SpatialForcing(16, 8)
    student, targets = torch.randn(2, 6, 16), torch.randn(2, 6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        projected = forcing.project(student, torch.ones(2, 6, dtype=torch.bool))
        result = forcing(student, targets)
    assert projected.dtype == torch.bfloat16 and result.total.dtype == torch.float32
    expected = 1 - torch.cosine_similarity(projected.float(), targets, dim=-1).mean()
    torch.testing.assert_close(result.total, expected, atol=1e-6, rtol=0)


def test_initial_weights_and_names_are_the_published_ones() -> None:
    forcing = SpatialForcing(48, 64)
    names = ["vlm_norm.weight", "vlm_norm.bias", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert list(forcing.state_dict()) == names
    for linear in (forcing.fc1, forcing.fc2):
        bound = math.sqrt(6 / (linear.in_features + linear.out_features))
        assert 0.9 * bound < linear.weight.abs().max() <= bound
        assert linear.bias.abs().sum() == 0
    with pytest.raises(ValueError, match="expected one of layer, batch, none"):
        SpatialForcing(4, 4, "group")  # type: ignore[arg-type]

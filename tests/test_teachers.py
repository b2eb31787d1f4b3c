"""Loading a teacher: what is checked, what takes memory, what its identity is."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from catalog.errors import UserError
from pipeline.teachers import OUTPUTS, load_teacher, save_teacher
from pipeline.teachers.checkpoint import Checkpoint
from tests.conftest import GOLDEN, TINY

WEIGHTS = GOLDEN / "public_weights.safetensors"
IMAGES = torch.linspace(0, 1, 1 * 2 * 3 * 28 * 42).reshape(1, 2, 3, 28, 42)


@pytest.fixture
def tensors():
    return load_file(WEIGHTS)


def written(tmp_path, tensors, name="model.safetensors"):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def parts_in_memory(teacher):
    return [
        name
        for name, part in teacher.network.named_children()
        if not any(parameter.is_meta for parameter in part.parameters())
    ]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_a_part_is_in_memory_only_once_it_was_asked_for(weights):
    teacher = load_teacher("vggt", weights, TINY)
    assert parts_in_memory(teacher) == []
    teacher(IMAGES, layers=[0, -1], outputs=("tokens", "special"))
    assert parts_in_memory(teacher) == ["aggregator"]
    heads = [name for name in teacher.network.state_dict() if not name.startswith("aggregator.")]
    assert heads and all(teacher.network.state_dict()[name].is_meta for name in heads)
    teacher(IMAGES, outputs=("pose",))
    assert parts_in_memory(teacher) == ["aggregator", "camera_head"]
    teacher(IMAGES, outputs=("points",))
    assert parts_in_memory(teacher) == ["aggregator", "camera_head", "point_head"]
    teacher(IMAGES, outputs=("confidence",))
    assert parts_in_memory(teacher) == ["aggregator", "camera_head", "point_head", "depth_head"]


def test_only_what_is_needed_is_read(tmp_path, tensors, monkeypatch):
    tensors["track_head.tracker.weight"] = torch.full((3, 3), torch.nan)
    names = []
    read = Checkpoint.read
    monkeypatch.setattr(Checkpoint, "read", lambda self, wanted, *to: names.extend(wanted) or read(self, wanted, *to))
    for name in ("model.safetensors", "model.pt"):
        names.clear()
        teacher = load_teacher("vggt", written(tmp_path, tensors, name), TINY)
        teacher(IMAGES)
        assert names and all(name.startswith("aggregator.") for name in names)
        assert len(teacher.state_dict()) == len(names) == 375


def test_pt_and_safetensors_give_the_same_numbers(tmp_path, tensors):
    expected = load_teacher("vggt", WEIGHTS, TINY)(IMAGES, outputs=OUTPUTS)
    old = tmp_path / "old.pt"
    torch.save(tensors, old, _use_new_zipfile_serialization=False)
    for path in (written(tmp_path, tensors, "model.pt"), old):
        found = load_teacher("vggt", path, TINY)(IMAGES, outputs=OUTPUTS)
        assert torch.equal(found.tokens[-1], expected.tokens[-1])
        for output in OUTPUTS[2:]:
            assert torch.equal(getattr(found, output), getattr(expected, output))


def test_half_precision_weights_compute_in_float32(tmp_path, tensors):
    half = {name: tensor.half() for name, tensor in tensors.items()}
    teacher = load_teacher("vggt", written(tmp_path, half), TINY)
    assert {tensor.dtype for tensor in teacher.state_dict().values()} == {torch.float32}
    assert teacher(IMAGES).tokens[-1].dtype == torch.float32


def test_missing_surplus_and_wrongly_shaped_keys_are_named_and_counted(tmp_path, tensors):
    for k in range(4):
        del tensors[f"aggregator.frame_blocks.{k}.ls1.gamma"]
    tensors["aggregator.extra"] = torch.zeros(1)
    tensors["aggregator.camera_token"] = torch.zeros(1, 2, 1, 16)
    for name in ("model.safetensors", "model.pt"):
        with pytest.raises(UserError) as error:
            load_teacher("vggt", written(tmp_path, tensors, name), TINY)
        text = str(error.value)
        assert "found 372 tensors, expected the teacher's 375" in text
        assert "4 missing (aggregator.frame_blocks.0.ls1.gamma; " in text and "; ...)" in text
        assert "1 not known (aggregator.extra)" in text
        assert "1 of another shape (aggregator.camera_token is [1, 2, 1, 16], expected [1, 2, 1, 32])" in text


def test_each_kind_of_wrong_key_alone_is_refused(tmp_path, tensors):
    whole = dict(tensors)
    del tensors["depth_head.norm.bias"]  # a head is checked although it is not built
    with pytest.raises(UserError, match=r"1 missing \(depth_head.norm.bias\)"):
        load_teacher("vggt", written(tmp_path, tensors), TINY)
    with pytest.raises(UserError, match=r"1 not known \(tracker\)"):
        load_teacher("vggt", written(tmp_path, {**whole, "tracker": torch.zeros(1)}), TINY)
    with pytest.raises(UserError, match="1 of another shape"):
        load_teacher("vggt", written(tmp_path, {**whole, "camera_head.token_norm.bias": torch.zeros(8)}), TINY)
    with pytest.raises(UserError, match="or the config that the file was made with"):
        load_teacher("vggt", WEIGHTS)


class Code:
    """Unpickling this would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_what_is_no_checkpoint_is_refused(tmp_path, tensors):
    with pytest.raises(UserError, match="no such file"):
        load_teacher("vggt", tmp_path / "model.pt", TINY)
    for name in ("model.pt", "model.safetensors", "empty.pt", "empty.safetensors"):
        (tmp_path / name).write_bytes(b"" if "empty" in name else b"\x07not a checkpoint at all" * 10)
        with pytest.raises(UserError, match="not a "):
            load_teacher("vggt", tmp_path / name, TINY)
    whole = written(tmp_path, tensors, "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a checkpoint"):
        load_teacher("vggt", tmp_path / "cut.pt", TINY)
    ran = tmp_path / "ran"
    torch.save({"aggregator.camera_token": Code(str(ran))}, tmp_path / "code.pt")
    with pytest.raises(UserError, match="holds pickled code, which is not run"):
        load_teacher("vggt", tmp_path / "code.pt", TINY)
    assert not ran.exists()
    for other in ({"model": tensors, "epoch": 3}, list(tensors.values())):
        torch.save(other, tmp_path / "other.pt")
        with pytest.raises(UserError, match="save the state_dict alone"):
            load_teacher("vggt", tmp_path / "other.pt", TINY)
    tensors["aggregator.camera_token"] = torch.zeros(1, 2, 1, 32, dtype=torch.int32)
    for name in ("integers.pt", "integers.safetensors"):
        with pytest.raises(UserError, match="expected floating point"):
            load_teacher("vggt", written(tmp_path, tensors, name), TINY)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_weights_file_that_changes_is_refused_and_cannot_change_what_was_loaded(tmp_path, tensors, name):
    path = written(tmp_path, tensors, name)
    teacher = load_teacher("vggt", path, TINY)
    expected = teacher(IMAGES).tokens[-1]
    path.write_bytes(b"\0" * path.stat().st_size)  # in place: a memory map of the file would show it
    assert torch.equal(teacher(IMAGES).tokens[-1], expected)
    with pytest.raises(UserError, match="changed since it was opened"):
        teacher(IMAGES, outputs=("pose",))


def test_what_a_teacher_says_of_itself():
    teacher = load_teacher("vggt", WEIGHTS, TINY)
    assert teacher.name == "vggt" and teacher.trained
    assert (teacher.patch, teacher.image_size, teacher.layers, teacher.channels, teacher.special) == (14, 56, 4, 64, 5)
    assert teacher.config == {**TINY, "patch": 14, "camera_depth": 4} == json.loads(json.dumps(teacher.config))
    assert teacher.weights_sha256 == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert "CC-BY-NC-4.0" in teacher.licence and "Commercial" in teacher.licence
    assert [teacher.resolve_layer(k) for k in (0, 3, -1, -4)] == [0, 3, 3, 0]
    # The config alone makes the same teacher again.
    assert load_teacher("vggt", WEIGHTS, teacher.config).config == teacher.config


def test_random_weights_are_the_same_everywhere_and_leave_the_generator_alone():
    before = torch.get_rng_state()
    first = load_teacher("vggt-mini")
    outputs = ("tokens", "depth", "pose")
    images = torch.linspace(0, 1, 3 * 28 * 28).reshape(1, 1, 3, 28, 28)
    tokens_first = first(images)
    out_first = first(images, outputs=outputs)
    assert torch.equal(torch.get_rng_state(), before)
    second = load_teacher("vggt-mini")
    out_second = second(images, outputs=("pose", "depth", "tokens"))
    assert torch.equal(tokens_first.tokens[-1], out_second.tokens[-1])
    assert torch.equal(out_first.depth, out_second.depth) and torch.equal(out_first.pose, out_second.pose)
    assert not first.trained and "random" in first.licence
    # Not only in this process: the recipe of a cache of an untrained teacher must mean the same on another machine.
    assert first.weights_sha256 == second.weights_sha256 == SEEDED
    assert load_teacher("vggt-mini", config={"depth": 5}).weights_sha256 != SEEDED


SEEDED = "115ccdeb4271e429ba90203a8609575e642323d6bbfbf8956c657f58206b2673"


def test_random_features_are_not_degenerate():
    teacher = load_teacher("vggt-mini")
    assert sum(tensor.numel() for tensor in teacher.state_dict().values()) < 6_000_000
    images = torch.nn.functional.interpolate(torch.rand(4, 3, 16, 16), scale_factor=14).unflatten(0, (2, 2))
    out = teacher(images, layers=[0, 2, -1], outputs=("tokens", "depth"))
    tokens = out.tokens[-1]
    assert tokens.shape == (2, 2, 256, 256)
    assert 0.3 < tokens.std() < 3
    assert tokens.std(dim=2).mean() > 0.3  # between the places of a view
    assert (tokens[0] - tokens[1]).std() > 0.3  # between timesteps
    assert (tokens - out.tokens[2]).std() > 0.1 and (out.tokens[2] - out.tokens[0]).std() > 0.1  # between layers
    assert out.depth.min() > 0.1 and out.depth.max() < 100
    # The other view is seen: attention over all views does something.
    alone = teacher(images[:, :1]).tokens[-1]
    assert (alone[:, 0] - tokens[:, 0]).std() > 0.02


def test_a_saved_teacher_loads_as_it_was(tmp_path):
    seeded = load_teacher("vggt", config=TINY)
    save_teacher(seeded, tmp_path / "new" / "tiny.safetensors")
    save_teacher(seeded, tmp_path / "again.safetensors")
    assert (tmp_path / "new" / "tiny.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    assert set(load_file(tmp_path / "again.safetensors")) == set(load_file(WEIGHTS))
    loaded = load_teacher("vggt", tmp_path / "again.safetensors", TINY)
    found, expected = loaded(IMAGES, outputs=OUTPUTS), seeded(IMAGES, outputs=OUTPUTS)
    assert torch.equal(found.tokens[-1], expected.tokens[-1]) and torch.equal(found.points, expected.points)
    assert loaded.trained and not seeded.trained
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.safetensors", "new"]

    save_teacher(seeded, tmp_path / "half.safetensors", dtype=torch.float16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "half.safetensors").values()} == {torch.float16}
    near = load_teacher("vggt", tmp_path / "half.safetensors", TINY)(IMAGES).tokens[-1]
    assert (near - expected.tokens[-1]).abs().max() < 0.02
    with pytest.raises(UserError, match=r"ends in \.safetensors"):
        save_teacher(seeded, tmp_path / "tiny.pt")


def test_another_depth_reads_its_dense_layers_at_the_published_proportions():
    assert load_teacher("vggt", config={**TINY, "depth": 8, "dpt_layers": [0, 2, 5, 7]}).config["dpt_layers"] == [
        0, 2, 5, 7,
    ]  # fmt: skip
    changes = {key: value for key, value in TINY.items() if key != "dpt_layers"}
    assert load_teacher("vggt", config={**changes, "depth": 6}).config["dpt_layers"] == [1, 2, 4, 5]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"embed": 32}, "unknown config key 'embed', expected one of: embed_dim"),
        ({"depth": "4"}, "'depth' is '4', expected a whole number"),
        ({"depth": True}, "'depth' is True, expected a whole number"),
        ({"dpt_layers": 3}, "expected a list of whole numbers"),
        ({"depth": 0}, "depth is 0, expected at least 1"),
        ({"num_heads": 3}, "multiple of 4"),
        ({"image_size": 500}, "multiple of the patch"),
        ({"dpt_layers": [0, 1, 2, 4]}, "expected four of 0..3"),
        ({"dpt_layers": [0, 1, 2]}, "expected four of 0..3"),
        ({"dpt_channels": [16, 32, 30, 32]}, "four multiples of 4"),
        ({"dpt_channels": []}, "at least 1"),
        ({"dpt_features": 20}, "multiple of 8"),
    ],
)
def test_a_wrong_config_is_refused(config, says):
    with pytest.raises(UserError, match=says):
        load_teacher("vggt", config={**TINY, **config})


def test_wrong_calls_are_refused_by_name():
    with pytest.raises(UserError, match="unknown teacher 'vgt', expected one of: vggt"):
        load_teacher("vgt")
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        load_teacher("vggt", config=TINY, device="gpu")
    with pytest.raises(UserError, match="unknown dtype 'float64', expected one of: float"):
        load_teacher("vggt", config=TINY, dtype="float64")
    teacher = load_teacher("vggt", config=TINY)
    with pytest.raises(UserError, match="unknown output 'token', expected any of: tokens"):
        teacher(IMAGES, outputs=("token",))
    for layer in (4, -5):
        with pytest.raises(UserError, match=rf"found layer {layer}, expected 0..3, or -4..-1 .* has 4 layers"):
            teacher(IMAGES, layers=[layer])
    for layers, outputs in (([], ("tokens",)), ([-1], ())):
        with pytest.raises(UserError, match="nothing was asked for"):
            teacher(IMAGES, layers=layers, outputs=outputs)
    with pytest.raises(UserError, match="28x40 pixels, expected multiples of the patch, 14"):
        teacher(IMAGES[..., :40])
    with pytest.raises(UserError, match="27x42 pixels, expected multiples of the patch, 14"):
        teacher(IMAGES[..., :27, :])
    for images in (IMAGES[0], IMAGES[None].transpose(2, 3), IMAGES[:, :, :1], IMAGES[:, :0]):
        with pytest.raises(UserError, match=r"expected \[timesteps, views, 3, height, width\]"):
            teacher(images)
    with pytest.raises(UserError, match="expected floating point in 0"):
        teacher((IMAGES * 255).to(torch.uint8))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none():
    with pytest.raises(UserError, match="this machine has none; ask for cpu"):
        load_teacher("vggt", config=TINY, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_trunk_is_bfloat16_and_near():
    expected = load_teacher("vggt", WEIGHTS, TINY)(IMAGES, outputs=("tokens", "depth", "pose"))
    teacher = load_teacher("vggt", WEIGHTS, TINY, device="cuda")
    found = teacher(IMAGES, outputs=("tokens", "depth", "pose"))
    assert teacher.dtype == "bfloat16" and found.depth.device.type == "cuda"
    assert (found.tokens[-1].cpu() - expected.tokens[-1]).abs().max() < 0.1
    assert (found.depth.cpu() - expected.depth).abs().max() < 0.1

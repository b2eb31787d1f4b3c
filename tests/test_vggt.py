"""VGGT against the published computation (tests/data/golden), and what a call runs and keeps."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from catalog.positions import POSITION_SCALE, position_grid
from pipeline.teachers import OUTPUTS, load_teacher
from pipeline.teachers.vggt import VGGT
from pipeline.teachers.vggt_config import VGGTConfig
from tests.conftest import GOLDEN, TINY

WEIGHTS = GOLDEN / "public_weights.safetensors"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("vggt", WEIGHTS, TINY)


def case(number):
    return load_file(GOLDEN / f"public_case{number}.safetensors")


def apart(found, expected):
    assert found.shape == expected.shape
    return (found - expected).abs().max().item()


@pytest.mark.parametrize("number", [0, 1])
def test_every_published_number(teacher, number):
    golden = case(number)
    out = teacher(golden["images"], layers=[0, 1, 2, 3], outputs=OUTPUTS)
    for k in range(4):
        both = torch.cat([out.special[k], out.tokens[k]], dim=2)
        assert apart(both, golden["aggregated_tokens"][k]) < TOLERANCE
    assert apart(out.depth, golden["depth"][..., 0]) < TOLERANCE
    assert apart(out.confidence, golden["depth_conf"]) < TOLERANCE
    assert apart(out.points, golden["world_points"]) < TOLERANCE
    assert apart(out.points_confidence, golden["world_points_conf"]) < TOLERANCE
    assert apart(out.pose, golden["pose_enc"]) < TOLERANCE


def test_the_position_grid_is_the_one_of_the_published_target():
    golden = load_file(GOLDEN / "public_align.safetensors")
    grid = torch.from_numpy(POSITION_SCALE * position_grid(37, 37, 64)).permute(2, 0, 1)[None]
    pooled = F.interpolate(grid, size=(16, 16), mode="bilinear", align_corners=True).flatten(2).transpose(1, 2)
    expected = golden["target_pe1"] - golden["target_pe0"]
    assert (pooled.repeat(1, 2, 1) - expected).abs().max() < 1e-5


def test_the_position_grid_knows_the_aspect_ratio():
    grid = position_grid(2, 4, 8)
    assert grid.dtype == np.float32 and grid.shape == (2, 4, 8)
    u, v = 2 / 5**0.5 * 3 / 4, 1 / 5**0.5 / 2
    assert grid[0, 0, 0] == pytest.approx(np.sin(-u)) and grid[0, 0, 4] == pytest.approx(np.sin(-v))
    assert grid[1, 3, 1] == pytest.approx(np.sin(u / 10)) and grid[1, 3, 7] == pytest.approx(np.cos(v / 10))
    assert np.array_equal(position_grid(2, 4, 8, aspect=2.0), grid)
    assert not np.array_equal(position_grid(2, 4, 8, aspect=1.0), grid)
    for wrong in [(0, 4, 8), (2, 4, 6), (2, 4, 0)]:
        with pytest.raises(ValueError, match="found"):
            position_grid(*wrong)
    with pytest.raises(ValueError, match="aspect"):
        position_grid(2, 4, 8, aspect=0.0)


def test_a_call_stops_after_the_last_round_that_is_needed(teacher):
    golden = case(0)
    ran = []
    blocks = [*teacher.network.aggregator.frame_blocks, *teacher.network.aggregator.global_blocks]
    hooks = [block.register_forward_hook(lambda *_, k=k: ran.append(k)) for k, block in enumerate(blocks)]
    try:
        out = teacher(golden["images"], layers=[1])
        assert ran == [0, 4, 1, 5]
        assert apart(out.tokens[1], golden["aggregated_tokens"][1][:, :, 5:]) < TOLERANCE
        assert list(out.tokens) == [1] and not out.special
        assert out.depth is out.confidence is out.points is out.points_confidence is out.pose is None
        ran.clear()
        teacher(golden["images"], layers=[0], outputs=("special", "pose"))
        assert len(ran) == 8
        ran.clear()
        teacher(golden["images"], layers=[1, -3], outputs=("special",))
        assert len(ran) == 4
    finally:
        for hook in hooks:
            hook.remove()


def test_dense_outputs_run_to_their_last_layer_only():
    teacher = load_teacher("vggt", config={**TINY, "dpt_layers": [0, 1, 1, 2]})
    ran = []
    for block in teacher.network.aggregator.frame_blocks:
        block.register_forward_hook(lambda *_: ran.append(1))
    out = teacher(torch.rand(1, 2, 3, 28, 42), layers=[0], outputs=("tokens", "confidence"))
    assert len(ran) == 3
    assert list(out.tokens) == [0] and out.depth is None and out.confidence.shape == (1, 2, 28, 42)


def test_layers_come_back_under_the_names_they_were_asked_by(teacher):
    golden = case(1)
    out = teacher(golden["images"], layers=[-1, 3, 0], outputs=("tokens", "special"))
    assert list(out.tokens) == list(out.special) == [-1, 3, 0]
    assert torch.equal(out.tokens[-1], out.tokens[3])
    assert apart(out.special[0], golden["aggregated_tokens"][0][:, :, :5]) < TOLERANCE
    assert out.tokens[-1].shape == (1, 3, 24, 64) and out.special[-1].shape == (1, 3, 5, 64)


def test_the_order_and_the_set_of_views_change_every_token(teacher):
    images = case(1)["images"]
    tokens = teacher(images).tokens[-1]
    swapped = teacher(images[:, [1, 0, 2]]).tokens[-1]
    assert (swapped[:, 1] - tokens[:, 0]).abs().amax(-1).min() > 1e-3
    assert (swapped[:, 2] - tokens[:, 2]).abs().amax(-1).min() > 1e-4
    fewer = teacher(images[:, :2]).tokens[-1]
    assert (fewer - tokens[:, :2]).abs().amax(-1).min() > 1e-3


def test_timesteps_of_a_batch_do_not_touch(teacher):
    images = case(0)["images"]
    outputs = ("tokens", "depth", "points", "pose")
    both = teacher(images, outputs=outputs)
    for b in range(2):
        alone = teacher(images[b : b + 1], outputs=outputs)
        assert apart(alone.tokens[-1], both.tokens[-1][b : b + 1]) < 1e-5
        for output in outputs[1:]:
            assert apart(getattr(alone, output), getattr(both, output)[b : b + 1]) < 1e-5


def test_many_frames_go_through_the_dense_heads_in_chunks(teacher):
    images = case(0)["images"]
    many = images.repeat(5, 1, 1, 1, 1)  # 20 frames, more than two chunks
    assert apart(teacher(many, outputs=("depth",)).depth[8:], teacher(images, outputs=("depth",)).depth) < 1e-5


def test_reduced_precision_is_near_and_float32_stays_float32_inside_autocast(teacher):
    images = case(0)["images"]
    exact = teacher(images, outputs=("tokens", "depth"))
    reduced = load_teacher("vggt", WEIGHTS, TINY, dtype="bfloat16")
    assert (teacher.dtype, reduced.dtype) == ("float32", "bfloat16")
    near = reduced(images, outputs=("tokens", "depth"))
    assert near.tokens[-1].dtype == near.depth.dtype == torch.float32
    assert 0 < apart(near.tokens[-1], exact.tokens[-1]) < 0.1
    assert 0 < apart(near.depth, exact.depth) < 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(teacher(images).tokens[-1], exact.tokens[-1])


def test_targets_can_stand_in_a_loss(teacher):
    """A teacher in the training loop: its outputs are constants of the graph, and can be saved for backward."""
    tokens = teacher(case(0)["images"]).tokens[-1]
    student = torch.randn_like(tokens).requires_grad_()
    (student * tokens).mean().backward()  # a product saves its factors for backward
    assert student.grad is not None and not tokens.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_the_default_is_the_published_network():
    with torch.device("meta"):
        network = VGGT(VGGTConfig())
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes["aggregator.camera_token"] == [1, 2, 1, 1024]
    assert shapes["aggregator.register_token"] == [1, 2, 4, 1024]
    assert shapes["aggregator.patch_embed.pos_embed"] == [1, 1370, 1024]
    assert shapes["aggregator.patch_embed.patch_embed.proj.weight"] == [1024, 3, 14, 14]
    assert shapes["aggregator.global_blocks.23.attn.q_norm.weight"] == [64]
    assert shapes["aggregator.frame_blocks.0.mlp.fc1.weight"] == [4096, 1024]
    assert shapes["camera_head.trunk.3.attn.qkv.weight"] == [6144, 2048]
    assert shapes["camera_head.poseLN_modulation.1.weight"] == [6144, 2048]
    assert shapes["camera_head.pose_branch.fc1.weight"] == [1024, 2048]
    assert shapes["depth_head.projects.3.weight"] == [1024, 2048, 1, 1]
    assert shapes["depth_head.resize_layers.0.weight"] == [256, 256, 4, 4]
    assert shapes["depth_head.scratch.layer4_rn.weight"] == [256, 1024, 3, 3]
    assert shapes["depth_head.scratch.output_conv2.0.weight"] == [32, 128, 3, 3]
    assert shapes["point_head.scratch.output_conv2.2.weight"] == [4, 32, 1, 1]
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_190_596_120

    # The names: those of the golden checkpoint, with the official number of blocks.
    block = re.compile(r"(\.(?:blocks|frame_blocks|global_blocks|trunk))\.\d+\.")
    depths = {".blocks": 24, ".frame_blocks": 24, ".global_blocks": 24, ".trunk": 4}
    expected = set()
    for name in load_file(WEIGHTS):
        found = block.search(name)
        many = range(depths[found[1]]) if found else [None]
        expected |= {name if k is None else block.sub(rf"\g<1>.{k}.", name) for k in many}
    assert set(shapes) == expected

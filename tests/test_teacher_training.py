"""Training a small VGGT: the truth it is shown, the loss, the score, and a run that resumes to the same weights."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from catalog.errors import UserError
from pipeline.teachers import load_teacher
from pipeline.training.learn import Course, learn, score_mean, score_teacher
from pipeline.training.loss import dense, losses
from pipeline.training.scenes import Scenes
from pipeline.training.score import score
from pipeline.training.truth import quaternion, truth
from tests.conftest import TINY

SIDE = 56


def camera(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """World to camera of one that looks at a target, z up in the world (OpenCV axes)."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, -rotation @ position
    return matrix


def scene(seed: int, views: int) -> dict[str, np.ndarray]:
    """Views of the plane z = 0 with a texture that is a function of its points, by ray casting; sky above."""
    generator = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {"images": [], "depth": [], "intrinsics": [], "extrinsics": []}
    for _ in range(views):
        focal = generator.uniform(0.8, 1.5) * SIDE
        K = np.array([[focal, 0, SIDE / 2], [0, focal, SIDE / 2], [0, 0, 1]])
        position = np.array([*generator.uniform(-2, 2, 2), generator.uniform(0.8, 2)])
        E = camera(position, generator.uniform(-0.5, 0.5, 3) * [1, 1, 0.3])
        y, x = np.mgrid[:SIDE, :SIDE] + 0.5
        rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(K).T @ E[:3, :3]  # to the world's axes
        depth = np.where(rays[..., 2] < -1e-3, -position[2] / np.minimum(rays[..., 2], -1e-3), np.inf)
        points = position + rays * np.where(np.isfinite(depth), depth, 0)[..., None]
        colour = np.stack([np.sin(3 * points[..., 0]), np.cos(2 * points[..., 1]), np.isinf(depth)], -1)
        parts["images"].append(np.uint8(127 + 100 * colour.clip(-1, 1)))
        parts["depth"].append(depth.astype(np.float16))
        parts["intrinsics"].append(K)
        parts["extrinsics"].append(E)
    return {key: np.stack(arrays) for key, arrays in parts.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes")
    for number in range(6):
        np.savez_compressed(path / f"{number:06d}.npz", **scene(number, views=1 + number % 3))
    return path


def as_truth(content: dict[str, np.ndarray]):
    return truth(*(torch.from_numpy(content[key])[None].double() for key in ("depth", "intrinsics", "extrinsics")))


def test_all_views_put_the_plane_at_one_place_in_the_frame_of_view_0() -> None:
    content = scene(0, views=3)
    true = as_truth(content)
    assert true.valid.float().mean() > 0.5
    lengths = true.points.norm(dim=-1)[true.valid]
    assert lengths.mean() == pytest.approx(1, abs=1e-5)  # the unit of length
    # In view 0's frame the plane z = 0 is normal . p = distance; points of every view must lie on it.
    normal = torch.from_numpy(content["extrinsics"][0][:3, 2]).float()
    distances = (true.points @ normal)[true.valid]
    assert distances.std() / distances.mean().abs() < 2e-3  # depth was rounded to float16
    assert torch.equal(true.points[0, 0, ..., 2][true.valid[0, 0]], true.depth[0, 0][true.valid[0, 0]])
    first, second = true.pose[0, 0], true.pose[0, 1]
    assert first[:7].tolist() == pytest.approx([0, 0, 0, 0, 0, 0, 1], abs=1e-6)
    assert second[:3].norm() > 0.1
    focal = content["intrinsics"][1][1, 1]
    assert float(second[7]) == pytest.approx(2 * math.atan(SIDE / 2 / focal), abs=1e-6)


def test_a_point_seen_by_one_view_lies_where_the_pose_of_another_says() -> None:
    content = scene(3, views=2)
    true = as_truth(content)
    t, (x, y, z, w) = true.pose[0, 1, :3], true.pose[0, 1, 3:7].tolist()
    rotation = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    row, column = torch.nonzero(true.valid[0, 1])[500].tolist()
    seen = rotation @ true.points[0, 1, row, column] + t
    assert float(seen[2]) == pytest.approx(float(true.depth[0, 1, row, column]), rel=1e-4)
    pixel = torch.from_numpy(content["intrinsics"][1]).float() @ (seen / seen[2])
    assert pixel[:2].tolist() == pytest.approx([column + 0.5, row + 0.5], abs=1e-2)


def test_half_the_side_keeps_the_geometry(folder: Path) -> None:
    scenes = Scenes(folder)
    whole, half = (scenes.batch([5], 3, halve=halve).true for halve in (False, True))
    assert half.points.shape == (1, 3, SIDE // 2, SIDE // 2, 3)
    both = whole.valid[..., ::2, ::2] & half.valid
    ratio = half.points[both].norm(dim=-1) / whole.points[..., ::2, ::2, :][both].norm(dim=-1)
    assert ratio.std() < 1e-4  # the same points, in a unit of length that may differ a little
    assert torch.allclose(whole.pose[..., 3:], half.pose[..., 3:], atol=1e-5)


def test_a_seed_decides_views_and_colours(folder: Path) -> None:
    scenes = Scenes(folder)
    first, again, other, plain = (scenes.batch([5], 2, seed=seed) for seed in (1, 1, 2, None))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.true.pose, again.true.pose)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(plain.images[0, 0].permute(1, 2, 0), torch.from_numpy(scenes.scenes[5]["images"][0]) / 255)


def test_quaternions_of_half_turns() -> None:
    turns = torch.stack([torch.diag(torch.tensor(d)) for d in ([1.0, -1, -1], [-1.0, 1, -1], [-1.0, -1, 1])]).double()
    assert torch.allclose(quaternion(turns).abs(), torch.eye(4).double()[:3], atol=1e-7)


def test_the_truth_has_no_error_and_the_sky_does_not_count() -> None:
    true = as_truth(scene(1, views=2))
    ones = torch.ones_like(true.depth)
    assert dense(true.points, true.points, ones, true.valid) == 0
    sky = torch.where(true.valid[..., None], true.points, 1e6)
    assert dense(sky, true.points, ones, true.valid) == 0
    assert dense(true.points + 0.1, true.points, ones, true.valid) > 0.1


def test_the_score_ignores_scale_and_sky() -> None:
    depth = torch.rand(8, 8) + 1
    depth[0] = torch.inf
    assert score([(depth.nan_to_num(posinf=5) * 7, depth)]).absrel == pytest.approx(0, abs=1e-6)
    wrong = depth.nan_to_num(posinf=5).clone()
    wrong[4:] *= 2
    found = score([(wrong, depth)])
    assert found.absrel > 0.2
    assert found.delta < 0.9
    with pytest.raises(ValueError, match="no view has a valid pixel"):
        score([(depth, torch.full((8, 8), torch.inf))])


def network(seed: int = 0):
    teacher = load_teacher("vggt", None, TINY)
    teacher.state_dict()  # gives every part its memory
    return teacher.network


def test_training_lowers_every_loss_and_resumes_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    scenes = Scenes(folder)
    course = Course(steps=40, batch=2, lr=2e-3, warmup=5, small=0.5)
    assert learn(network(), scenes, course, tmp_path / "whole") == 40
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(40))
    for part in ("depth", "points", "pose"):
        assert np.mean([line[part] for line in lines[-8:]]) < np.mean([line[part] for line in lines[:8]])
    done = learn(network(), scenes, course, tmp_path / "stopped", stop_after=0)
    assert done == 1
    assert not (tmp_path / "stopped/weights.safetensors").exists()
    assert learn(network(), scenes, course, tmp_path / "stopped") == 40
    whole, resumed = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "stopped/metrics.jsonl").read_text()
    with pytest.raises(UserError, match="choose another --out"):
        learn(network(), scenes, Course(steps=41), tmp_path / "whole")
    trained = load_teacher("vggt", tmp_path / "whole/weights.safetensors", TINY)
    untrained = load_teacher("vggt", None, TINY)
    assert score_teacher(trained, scenes, 1).absrel < score_teacher(untrained, scenes, 1).absrel
    assert 0 < score_mean(scenes, scenes, 1).absrel < 1


def test_a_frozen_trunk_stays_as_it_was(folder: Path, tmp_path: Path) -> None:
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    learn(model, Scenes(folder), Course(steps=2, batch=1, freeze_trunk=True), tmp_path / "heads")
    moved = {key.split(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"camera_head", "depth_head", "point_head"}


def test_the_losses_reach_every_parameter(folder: Path) -> None:
    model = network().requires_grad_(True)
    batch = Scenes(folder).batch([5], 3, seed=1)
    outputs = ("depth", "confidence", "points", "points_confidence", "pose")
    losses(model(batch.images, layers=(), outputs=outputs, dtype=torch.float32), batch.true).total.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert all("mask_token" in name or "refinenet4.resConfUnit1" in name for name in without), without


def test_a_folder_without_scenes_and_a_damaged_scene_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no scenes"):
        Scenes(tmp_path)
    (tmp_path / "000000.npz").write_bytes(b"PK not really")
    with pytest.raises(UserError, match=r"000000.npz: not a scene"):
        Scenes(tmp_path)

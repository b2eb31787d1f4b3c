"""A student's token is compared with the teacher's view of the same place, however the two frame the image."""

import numpy as np
import pytest
import torch

from pipeline.teachers.framing import framing
from trainer.align import Targets
from trainer.geometry import places

STUDENT, STUDENT_GRID = (224, 224), (16, 16)
SHAPES = {"4:3": (480, 640), "16:9": (360, 640), "portrait": (640, 480), "square": (128, 128)}


def stretched(source: tuple[int, int]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    return (STUDENT[1] / source[1], 0.0, 0.0), (0.0, STUDENT[0] / source[0], 0.0)


def student_centres(source: tuple[int, int]) -> torch.Tensor:
    """Source pixels (x, y) that the student's tokens show, [n, 2]."""
    rows, columns = STUDENT_GRID
    y, x = np.meshgrid(
        (np.arange(rows) + 0.5) * source[0] / rows, (np.arange(columns) + 0.5) * source[1] / columns, indexing="ij"
    )
    return torch.from_numpy(np.stack([x, y], -1).reshape(-1, 2).astype(np.float32))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preset", ["crop", "pad"])
@pytest.mark.parametrize("grid", ["native", (16, 16)])
def test_targets_show_the_source_point_of_their_token(shape: str, preset: str, grid: str | tuple[int, int]) -> None:
    source = SHAPES[shape]
    found = framing(preset, *source, 518, 14)
    height, width = found.size
    native = (height // 14, width // 14)
    stored = native if isinstance(grid, str) else grid
    # Features that say which source pixel (x, y) they show: read back, they must say the student's own.
    (a, _, c), (_, e, f) = found.source_to_teacher
    y, x = np.meshgrid((np.arange(native[0]) + 0.5) * 14, (np.arange(native[1]) + 0.5) * 14, indexing="ij")
    shown = np.stack([(x - c) / a, (y - f) / e], -1).astype(np.float32)
    features = Targets(2, native, native, stored, positions=False)(torch.from_numpy(shown).reshape(1, 1, -1, 2))

    answer = places([found.describe()], stretched, STUDENT, STUDENT_GRID, native, stored)
    if answer is None:
        assert shape == "square" or (preset, shape) in {("crop", "4:3"), ("crop", "16:9")}
        return
    where, seen = map(torch.from_numpy, answer)
    read = Targets(2, native, stored, STUDENT_GRID, positions=False, places=where)(features)[0, 0]
    token = torch.tensor([source[1] / STUDENT_GRID[1], source[0] / STUDENT_GRID[0]])
    wrong = ((read - student_centres(source)) / token).abs().amax(-1)
    assert seen[0].any()
    assert wrong[seen[0]].max() < 0.25  # tokens of the student
    if (preset, shape) == ("crop", "portrait"):  # the teacher does not see the upper and lower end
        assert not seen[0].reshape(STUDENT_GRID)[0].any() and not seen[0].reshape(STUDENT_GRID)[-1].any()
        assert 0.7 < seen[0].float().mean() < 0.8
    else:
        assert seen[0].all()


def test_positions_are_read_at_the_same_places() -> None:
    source, native, channels = (640, 480), (37, 37), 8
    found = framing("pad", *source, 518, 14).describe()
    answer = places([found, found], stretched, STUDENT, STUDENT_GRID, native, native)
    assert answer is not None
    where = torch.from_numpy(answer[0])
    with_positions = Targets(channels, native, native, STUDENT_GRID, places=where)
    published = Targets(channels, native, native, native)
    assert published.positions is not None
    features = torch.randn(3, 2, 37 * 37, channels, generator=torch.Generator().manual_seed(0))
    without = Targets(channels, native, native, STUDENT_GRID, positions=False, places=where)
    torch.testing.assert_close(with_positions(features), without(features + published.positions), atol=1e-5, rtol=0)

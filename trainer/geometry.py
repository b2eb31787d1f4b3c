"""Where a student's token lies in the teacher's grid, when the two frame the source image differently.

Coordinates are continuous pixels with (0, 0) at the outer corner of the first pixel, as in a recipe's framing. Token
(i, j) of a student shows the source around its centre; its target is the teacher's grid at the place that shows the
same source point. Where both framings show the same rectangle of the source, there is nothing to do: the published
pooling, corners aligned, is used exactly.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Affine = Sequence[Sequence[float]]  # ((a, 0, c), (0, e, f)): x' = a x + c, y' = e y + f
Grid = tuple[int, int]


def places(
    framings: Sequence[Mapping[str, Any]],
    source_to_student: Callable[[tuple[int, int]], Affine],
    student_size: tuple[int, int],
    student_grid: Grid,
    native_grid: Grid,
    grid: Grid,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
    """Places [V, n, 2] (x, y) in units of the stored grid's tokens, the first token's centre being 0, of the n
    student tokens; and which of them [V, n] show a part of the source that the teacher saw.

    `framings` are the recipe's, a view each; `source_to_student` gives the affine for a source (height, width);
    `student_size` is (height, width) in pixels. None where every view's framings agree.
    """
    each = [_view(framing, source_to_student, student_size, student_grid, native_grid, grid) for framing in framings]
    if all(agrees for _, _, agrees in each):
        return None
    return np.stack([place for place, _, _ in each]), np.stack([seen for _, seen, _ in each])


def _view(
    framing: Mapping[str, Any],
    source_to_student: Callable[[tuple[int, int]], Affine],
    student_size: tuple[int, int],
    student_grid: Grid,
    native_grid: Grid,
    grid: Grid,
) -> tuple[NDArray[np.float32], NDArray[np.bool_], bool]:
    source = (int(framing["source"][0]), int(framing["source"][1]))
    student, teacher = source_to_student(source), framing["source_to_teacher"]
    axes = []
    for axis in (0, 1):  # rows, then columns: y is the second line of an affine
        line = 1 - axis
        tokens = student_grid[axis]
        edges = np.asarray([0, student_size[axis]], np.float64)
        centres = (np.arange(tokens) + 0.5) * student_size[axis] / tokens
        shown = [(where - student[line][2]) / student[line][line] for where in (edges, centres)]
        seen = [where * teacher[line][line] + teacher[line][2] for where in shown]
        size, native, stored = framing["size"][axis], native_grid[axis], grid[axis]
        agrees = bool(np.allclose(seen[0], [0, size], atol=1e-6 * size))
        # The stored grid was pooled from the teacher's own with corners aligned.
        place = (seen[1] * native / size - 0.5) * ((stored - 1) / (native - 1) if native > 1 else 0)
        inside = (shown[1] >= 0) & (shown[1] <= source[axis]) & (seen[1] >= 0) & (seen[1] <= size)
        axes.append((place, inside, agrees))
    (rows, rows_in, rows_agree), (columns, columns_in, columns_agree) = axes
    y, x = np.meshgrid(rows, columns, indexing="ij")
    place = np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32)
    return place, np.outer(rows_in, columns_in).reshape(-1), rows_agree and columns_agree

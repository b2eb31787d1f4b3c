"""layers.png: AbsRel over the layers. depths.png: a few frames and what each arm makes of them."""

from io import BytesIO
from typing import Any

import numpy as np
from torch import Tensor

from catalog.errors import UserError
from trainer.probe.arms import NO_IMAGE
from trainer.probe.frames import Frames
from trainer.probe.measure import counts, metrics, sums
from trainer.probe.probe import Pictures

DPI = 110


def need_matplotlib() -> None:
    """Raise UserError before any work is done where the pictures could not be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError(
            "trainer probe draws with matplotlib, which is missing; pip install 'spatialcache[all]'"
        ) from None


def layers(result: dict[str, Any]) -> bytes:
    """PNG: for all cameras and each, AbsRel of the linear probe over the student's layers; at the right the DPT-like
    probe. Runs and their floors are lines, what has no such layers (teacher, no image) is a level; bands are the
    intervals. Arms at their own width, not the common one, are dashed."""
    from matplotlib.figure import Figure

    titles = ["all cameras", *result["cameras"]] if len(result["cameras"]) > 1 else result["cameras"]
    figure = Figure(figsize=(4.6 * len(titles), 4.2), layout="constrained")
    axes = figure.subplots(1, len(titles), squeeze=False)[0]
    kinds = {arm["name"]: arm["kind"] for arm in result["arms"]}
    last = max(max(arm["layers"]) for arm in result["arms"] if arm["kind"] != "teacher")
    colours = {name: f"C{number}" for number, name in enumerate(kinds)}
    for axis, title in zip(axes, titles, strict=True):
        lines: dict[tuple[str, int], list[tuple[int, dict[str, float]]]] = {}
        for each in result["results"]:
            value = each["cameras"].get(title, each["all"])["abs_rel"]
            if value["value"] is None:
                continue
            key = (each["arm"], each["width"] or 0)
            if each["arm"] == NO_IMAGE:
                _level(axis, value, "black", ":", NO_IMAGE)
            elif each["probe"] == "dpt":
                x = last + 1.5 + 0.12 * (list(kinds).index(each["arm"]) - (len(kinds) - 1) / 2)  # side by side
                _point(axis, x, value, colours[each["arm"]], key[1] == result["width"])
            elif kinds[each["arm"]] == "teacher":
                if each["layers"] == [max(arm["layers"][-1] for arm in result["arms"] if arm["kind"] == "teacher")]:
                    _level(axis, value, colours[each["arm"]], *_look(key, result))
            else:
                lines.setdefault(key, []).append((each["layers"][0], value))
        for key, points in lines.items():
            x, values = [layer for layer, _ in points], [value for _, value in points]
            style, label = _look(key, result)
            axis.plot(
                x, [each["value"] for each in values], style, color=colours[key[0]], marker="o", ms=3, label=label
            )
            if values[0]["low"] is not None:
                band = [[each[end] for each in values] for end in ("low", "high")]
                axis.fill_between(x, *band, color=colours[key[0]], alpha=0.15, lw=0)
        axis.set_xticks([*range(0, last + 1, max(1, last // 6)), last + 1.5])
        axis.set_xticklabels([*map(str, range(0, last + 1, max(1, last // 6))), "DPT"])
        axis.set_title(title)
        axis.set_xlabel("layer of the student (linear probe)")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("AbsRel on unseen episodes (lower is better)")
    axes[0].legend(fontsize=8)
    return _png(figure)


def depths(frames: Frames, pictures: Pictures) -> bytes:
    """PNG: a row a picture: image, true depth, each arm's depth, all on the row's one colour scale (log metres).
    What does not count is grey. Under each prediction, its AbsRel."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    views, names = len(frames.cameras), list(pictures.predicted)
    colours = colormaps["turbo"].with_extremes(bad="0.75")
    figure = Figure(figsize=(1.75 * (2 + len(names)) + 0.8, 1.95 * len(pictures.maps)), layout="constrained")
    axes = figure.subplots(len(pictures.maps), 2 + len(names), squeeze=False)
    for row, place in enumerate(pictures.maps):
        episode, frame = int(frames.episode[place // views]), int(frames.frame[place // views])
        camera = frames.cameras[place % views]
        true = frames.depth[place].float()
        valid = counts(true)
        inside = true[valid] if valid.any() else true.new_tensor([0.1, 1.0])
        low = max(float(inside.min()), 1e-2)
        scale = LogNorm(low, max(float(inside.max()), 1.01 * low))
        axes[row, 0].imshow(frames.dataset.frames(episode, [frame], camera)[0])
        axes[row, 0].set_ylabel(f"{camera.rsplit('.', 1)[-1]}\nepisode {episode}, frame {frame}", fontsize=7)
        shown: list[tuple[str, Tensor]] = [("true depth", true)]
        shown += [(name, pictures.predicted[name][row]) for name in names]
        for column, (name, depth) in enumerate(shown, start=1):
            masked = np.ma.masked_array(depth.numpy(), ~valid.numpy())
            drawn = axes[row, column].imshow(masked, cmap=colours, norm=scale)
            if column > 1:
                error = float(metrics(sums(depth[None], true[None]))["abs_rel"][0])
                axes[row, column].set_xlabel(f"AbsRel {error:.3f}", fontsize=7)
            if row == 0:
                axes[0, column].set_title(name, fontsize=8)
        bar = figure.colorbar(drawn, ax=axes[row, -1], fraction=0.05)
        bar.ax.tick_params(labelsize=6, which="both")
        bar.set_label("m", fontsize=7)
    axes[0, 0].set_title("image", fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return _png(figure)


def _look(key: tuple[str, int], result: dict[str, Any]) -> tuple[str, str]:
    name, width = key
    return ("-", name) if width == result["width"] else ("--", f"{name}, own width {width}")


def _level(axis: Any, value: dict[str, float], colour: str, style: str, label: str) -> None:
    axis.axhline(value["value"], color=colour, ls=style, lw=1.2, label=label)
    if value["low"] is not None:
        axis.axhspan(value["low"], value["high"], color=colour, alpha=0.1, lw=0)


def _point(axis: Any, x: float, value: dict[str, float], colour: str, common: bool) -> None:
    if not common:
        return
    axis.plot([x], [value["value"]], marker="D", ms=4, color=colour)
    if value["low"] is not None:
        axis.vlines(x, value["low"], value["high"], color=colour, lw=1)


def _png(figure: Any) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()

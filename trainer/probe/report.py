"""The results in words: the table for stdout, and probe.md."""

from typing import Any

from trainer.probe.heads import FINER

FEW = 8  # test episodes, below which a percentile bootstrap is known to be too narrow
HEADER = ("arm", "probe", "layer", "width", "AbsRel", "RMSE (m)", "delta < 1.25")


def rows(result: dict[str, Any], camera: str | None = None) -> list[tuple[str, ...]]:
    """The table's rows over all cameras, or of one."""
    return [
        (
            each["arm"],
            each["probe"] or "-",
            ", ".join(map(str, each["layers"])) or "-",
            str(each["width"] or "-"),
            *(_interval((each["cameras"][camera] if camera else each["all"])[name]) for name in ("abs_rel", "rmse")),
            _interval((each["cameras"][camera] if camera else each["all"])["delta"]),
        )
        for each in result["results"]
    ]


def plain(result: dict[str, Any]) -> str:
    """The table over all cameras, in columns."""
    lines = [HEADER, *rows(result)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def markdown(result: dict[str, Any]) -> str:
    """probe.md: what was done, the table over all cameras and of each, and differences."""
    text = ["# Depth probe", "", *_about(result), ""]
    for title, camera in [("All cameras", None), *((name, name) for name in result["cameras"])]:
        text += [f"## {title}", "", *_table(HEADER, rows(result, camera)), ""]
    if result["differences"]:
        header = ("arm", "minus", "probe", "layer", "width", "AbsRel", "RMSE (m)", "delta < 1.25")
        lines = [
            (
                each["arm"], each["minus"], each["probe"], ", ".join(map(str, each["layers"])), str(each["width"]),
                *(_interval(each["all"][name], sign="+") for name in ("abs_rel", "rmse", "delta")),
            )
            for each in result["differences"]
        ]  # fmt: skip
        text += ["## Differences, paired by episode, all cameras", "", *_table(header, lines), ""]
    return "\n".join(text)


def notes(result: dict[str, Any]) -> list[str]:
    """What a reader must know before he believes a number."""
    out = []
    if (episodes := len(result["test_episodes"])) == 1:
        out.append("One test episode: there are no intervals.")
    elif episodes < FEW:
        out.append(f"{episodes} test episodes: a bootstrap of so few gives intervals that are too narrow.")
    for run, seen in result["test_episodes_seen_by_the_policy"].items():
        if seen:
            out.append(
                f"The policy of {run} was trained on the images of {len(seen)} of the {len(result['test_episodes'])} "
                "test episodes (never on their depth)."
            )
    wide = [arm for arm in result["arms"] if arm["width"] > result["width"]]
    for arm in wide:
        out.append(
            f"Tokens of {arm['name']} are {arm['width']} wide: projected to {result['width']} by a fixed random "
            "orthonormal matrix, which loses something; the rows at their own width have more parameters instead."
        )
    few = [arm for arm in result["arms"] if len(arm["layers"]) < 4]
    out += [f"{arm['name']} has {len(arm['layers'])} layer(s): the DPT-like probe reads some twice." for arm in few]
    if any(arm["name"] == "teacher (untrained)" for arm in result["arms"]):
        out.append("The teacher is UNTRAINED (random weights from a seed): it is no ceiling.")
    return out


def _about(result: dict[str, Any]) -> list[str]:
    train, test, frames = result["train_episodes"], result["test_episodes"], result["frames"]
    learned = "; ".join(f"{name}: {count:,} parameters" for name, count in result["parameters"].items())
    height, width = result["map"]
    return [
        f"Dataset {result['dataset']}, cameras {', '.join(result['cameras'])}; one frame in {result['stride']} of "
        f"{len(train)} training episodes ({frames['train']} frames) and {len(test)} test episodes ({frames['test']} "
        f"frames: {', '.join(map(str, test))}). Depth is that of the simulator, {height}x{width} pixels; what is "
        f"beyond {result['limit_metres']:.0f} m does not count.",
        "",
        f"Everything but the probe is frozen. Every probe: {result['steps']} steps of 16 maps, seed {result['seed']}, "
        f"the same frames in the same order; tokens standardised, {result['grid'][0]}x{result['grid'][1]} a view, "
        f"{result['width']} wide; each token gives {FINER}x{FINER} log depths, to which its camera's "
        f"mean of training is added. {learned}. Layer 0 is the embeddings. "
        "`no image` is the mean depth of each camera's pixels in training. Intervals: 95 %, "
        f"{result['resamples']:,} bootstrap draws of test episodes.",
        *(f"\n**{note}**" for note in notes(result)),
    ]


def _interval(each: dict[str, float | None], sign: str = "") -> str:
    if each["value"] is None:
        return "-"
    value = f"{each['value']:{sign}.3f}"
    return value if each["low"] is None else f"{value} [{each['low']:{sign}.3f}, {each['high']:{sign}.3f}]"


def _table(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> list[str]:
    return [_line(header), _line(("---",) * len(header)), *map(_line, lines)]


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"

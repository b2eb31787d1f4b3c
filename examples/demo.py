"""The whole job on real robot demonstrations: extract once, check, train without and with alignment, compare.

`make demo` runs this. Every step is one of the project's own commands, printed before it runs. Everything goes to
demo/ and a second call resumes what is there; `demo/report.md` is the result.
"""

import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DATASET = Path("examples/metaworld")
OUT = Path("demo")
CACHE = OUT / "metaworld.zarr"
EPISODES = "0:12"
STEPS = 60
ONLINE_STEPS = 10  # enough for its step time; its losses are those of the cached arm
WARM_UP = 3  # steps that are left out of the step times

UNTRAINED = (
    "The teacher here is `vggt-mini` with seeded, **untrained** weights: the demo shows that the machinery works and "
    "what it costs, not that geometry helps."
)


def run(command: str, *arguments: object) -> dict[str, Any]:
    """Run one of the three commands with --json, its progress on the terminal; its result."""
    line = [command, *map(str, arguments)]
    sys.stdout.write(f"\n$ {shlex.join(line)}\n")
    sys.stdout.flush()
    done = subprocess.run(
        [Path(sys.executable).with_name(command), *line[1:], "--json"], stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        sys.exit(f"demo: `{shlex.join(line)}` failed; its message is above")
    result: dict[str, Any] = json.loads(done.stdout)
    shown = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in result.items()
             if isinstance(value, int | float)]  # fmt: skip
    sys.stdout.write(f"  {', '.join(shown)}\n" if shown else "")
    return result


def train(mode: str, steps: int) -> list[dict[str, float]]:
    """Train one arm, or take it up where it stopped; its metrics, a step each."""
    out = OUT / f"run-{mode}"
    settings = {"alignment.mode": mode, "data.episodes": EPISODES, "steps": steps, "out": out}
    run(
        "trainer",
        "run",
        "demo",
        *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")),
        "--resume",
    )
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def step_time(metrics: list[dict[str, float]]) -> float:
    return statistics.median(line["step_seconds"] for line in metrics[WARM_UP:])


def draw(arms: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Loss curves: the action loss of every arm, and the alignment loss of the cached one."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, metrics in arms.items():
        left.plot(
            [line["step"] for line in metrics], [line["action_loss"] for line in metrics], label=f"alignment {name}"
        )
    left.set(title="action loss (L1, normalised actions)", xlabel="step", ylabel="loss", ylim=(0, None))
    left.legend()
    cached = arms["cached"]
    right.plot([line["step"] for line in cached], [line["align_loss"] for line in cached], color="C1")
    right.set(title="alignment loss (1 - cosine), untrained teacher", xlabel="step", ylabel="loss", ylim=(0, None))
    figure.savefig(path, dpi=120)


def report(extraction: dict[str, Any], arms: dict[str, list[dict[str, float]]], seconds: float) -> str:
    none = step_time(arms["none"])
    lines = [
        "# Demo",
        "",
        f"`{DATASET}`, episodes {EPISODES}, {extraction['frames']} frames of two cameras. {UNTRAINED}",
        "",
        "| extraction | |",
        "|---|---|",
        f"| frames/s of the latest run, Ray and decoding included | {extraction['frames_per_second']:.1f} |"
        if extraction["rows_made"]
        else "| frames/s | the cache was there already: nothing to do |",
        f"| bytes a frame (two views) | {extraction['bytes_per_frame']:,} |",
        f"| cache | {extraction['bytes'] / 1e6:.1f} MB in {extraction['shards']} shards |",
        "",
        "| training, alignment | step (median) | over none | action loss, first to last 10 steps | alignment loss |",
        "|---|---|---|---|---|",
    ]
    for name, metrics in arms.items():
        first, last = ([line["action_loss"] for line in part] for part in (metrics[:10], metrics[-10:]))
        aligned = (
            f"{metrics[0]['align_loss']:.3f} to {metrics[-1]['align_loss']:.3f}"
            if metrics[0].get("align_loss")
            else "-"
        )
        time = step_time(metrics)
        lines.append(
            f"| {name} ({len(metrics)} steps) | {time * 1000:.0f} ms | {time / none:.2f} | "
            f"{statistics.mean(first):.3f} to {statistics.mean(last):.3f} | {aligned} |"
        )
    lines += [
        "",
        "`online` is what training without a cache costs: the teacher runs in every step.",
        "",
        "![frames and their features](preview.png)",
        "",
        "![loss curves](losses.png)",
        "",
        f"The demo took {seconds:.0f} s.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    start = perf_counter()
    OUT.mkdir(exist_ok=True)
    sys.stdout.write(f"{UNTRAINED.replace('**', '').replace('`', '')}\n")
    extraction = run(
        "pipeline", "extract", "--dataset", DATASET, "--teacher", "vggt-mini", "--views", "corner2,gripperPOV",
        "--grid", "8x8", "--episodes", EPISODES, "--out", CACHE,
    )  # fmt: skip
    run("pipeline", "verify", CACHE)
    run("pipeline", "preview", CACHE, "--out", OUT / "preview.png")
    arms = {"none": train("none", STEPS), "cached": train("cached", STEPS), "online": train("online", ONLINE_STEPS)}
    draw({name: arms[name] for name in ("none", "cached")}, OUT / "losses.png")
    text = report(extraction, arms, perf_counter() - start)
    (OUT / "report.md").write_text(text)
    sys.stdout.write(f"\n{text}\nwritten: {OUT}/report.md, {OUT}/preview.png, {OUT}/losses.png\n")


if __name__ == "__main__":
    main()

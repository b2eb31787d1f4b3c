"""`pipeline teacher train | score`. Nothing heavy is imported before one runs."""

import argparse
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from catalog.command import subcommand


def add_commands(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = subcommand(commands, "train", train, "train vggt-mini from nothing; the same command resumes")
    command.add_argument("--scenes", type=Path, required=True, metavar="DIR", help="from `trainer scenes`")
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="state, metrics and weights.safetensors"
    )
    command.add_argument("--steps", type=int, default=6000)
    command.add_argument("--batch", type=int, default=8, help="scenes a step (default 8)")
    command.add_argument("--lr", type=float, default=6e-4)
    command.add_argument("--small", type=float, default=0.6, help="share of the steps at half the image side")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--freeze-trunk", action="store_true", help="train the heads of an untrained trunk alone")
    command.add_argument("--stop-after", type=float, default=math.inf, metavar="MINUTES", help="stop early, resumable")
    command.add_argument("--device", default="cpu")

    command = subcommand(commands, "score", score, "depth on scenes: AbsRel and delta < 1.25 after median scaling")
    command.add_argument("--scenes", type=Path, required=True, metavar="DIR")
    command.add_argument("--weights", type=Path, metavar="FILE", help="of vggt-mini; without it: untrained")
    command.add_argument("--train-scenes", type=Path, metavar="DIR", help="also score their mean depth of each pixel")
    command.add_argument("--views", type=int, default=2, help="seen together (default 2)")


def train(options: argparse.Namespace) -> tuple[Any, str]:
    from tqdm import tqdm

    from pipeline.teachers.vggt import VGGTTeacher
    from pipeline.training.learn import Course, learn
    from pipeline.training.scenes import Scenes

    scenes = Scenes(options.scenes)
    teacher = VGGTTeacher("vggt-mini")
    teacher.state_dict()  # gives every part its memory
    names = ("steps", "batch", "lr", "small", "seed", "freeze_trunk")
    course = Course(**{name: getattr(options, name) for name in names})
    with tqdm(total=course.steps, unit="step", desc="train", file=sys.stderr) as bar:

        def progress(step: int, values: dict[str, float]) -> None:
            bar.n = step
            bar.set_postfix({name: f"{values[name]:.3f}" for name in ("depth", "points", "pose")}, refresh=False)
            bar.update(1)

        done = learn(
            teacher.network,
            scenes,
            course,
            options.out,
            options.device,
            stop_after=options.stop_after * 60,
            progress=progress,
        )
    result = {"out": str(options.out), "steps": done, "of": course.steps, "scenes": len(scenes)}
    state = "trained" if done == course.steps else "stopped; the same command goes on"
    return result, f"{options.out}: {done} of {course.steps} steps on {len(scenes)} scenes, {state}"


def score(options: argparse.Namespace) -> tuple[Any, str]:
    from pipeline.teachers import load_teacher
    from pipeline.training.learn import score_mean, score_teacher
    from pipeline.training.scenes import Scenes

    scenes = Scenes(options.scenes)
    teacher = load_teacher("vggt-mini", options.weights)
    name = str(options.weights) if options.weights else "vggt-mini, untrained"
    scores = {name: score_teacher(teacher, scenes, options.views)}
    if options.train_scenes:
        scores["mean depth of each pixel"] = score_mean(Scenes(options.train_scenes), scenes, options.views)
    lines = [
        f"{label}: AbsRel {each.absrel:.3f}, delta<1.25 {each.delta:.3f} ({each.views} views)"
        for label, each in scores.items()
    ]
    return {label: asdict(each) for label, each in scores.items()}, "\n".join(lines)

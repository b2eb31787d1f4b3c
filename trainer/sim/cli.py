"""The commands that need the simulator: eval, demos, scenes. Nothing heavy is imported before one runs."""

import argparse
from pathlib import Path
from typing import Any

from catalog.command import subcommand


def add_commands(commands: Any) -> None:
    """Add them to `trainer`'s subcommands."""
    command = subcommand(commands, "eval", evaluate, "success of a policy in Meta-World, closed loop")
    command.add_argument("policy", metavar="RUN|expert", help="folder of a run, or `expert`: the scripted experts")
    _tasks(command)
    command.add_argument("--episodes", type=int, default=10, metavar="N", help="of each task (default 10)")
    _workers(command)
    command.add_argument(
        "--steps-per-chunk", type=int, metavar="K", help="actions carried out of each predicted chunk (default all)"
    )
    command.add_argument(
        "--video",
        type=Path,
        nargs="?",
        const=Path("videos"),
        metavar="DIR",
        help="write the first episode of each task as an mp4 (default DIR: videos)",
    )
    command.add_argument("--size", type=int, metavar="PIXELS", help="of the images rendered; default: the dataset's")
    command.add_argument("--device", default="cpu", help="cpu (default) or cuda")

    command = subcommand(commands, "demos", demos, "expert demonstrations of Meta-World as a LeRobot v3.0 dataset")
    _tasks(command)
    command.add_argument("--episodes", type=int, default=10, metavar="N", help="attempts at each task (default 10)")
    command.add_argument("--cameras", default="corner2,gripperPOV", metavar="A,B", help="default corner2,gripperPOV")
    command.add_argument("--size", type=int, default=128, metavar="PIXELS", help="a side of an image (default 128)")
    command.add_argument("--depth", action="store_true", help="depth and camera matrices beside it, in depth/")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="run again with the same to go on")
    _workers(command)

    command = subcommand(
        commands, "scenes", scenes, "random scenes of Meta-World with true depth, to train a teacher on"
    )
    command.add_argument("--count", type=int, required=True, metavar="N", help="scenes in all; a larger N adds some")
    command.add_argument("--views", default="1..3", metavar="A..B", help="of a scene (default 1..3)")
    command.add_argument("--size", type=int, default=224, metavar="PIXELS", help="a side of an image (default 224)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--tasks", metavar="A,B|all", help="default: all but the ones held out for tests")
    command.add_argument(
        "--standard", metavar="A,B|all", help="test scenes of these tasks, seen by six cameras of Meta-World, unpainted"
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="run again with the same to go on")
    _workers(command)


def _tasks(command: argparse.ArgumentParser) -> None:
    command.add_argument("--tasks", required=True, metavar="A,B|all", help="as in drawer-open,push")


def _workers(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default 1)")


def evaluate(options: argparse.Namespace) -> tuple[Any, str]:
    from trainer.sim.evaluate import Who, evaluate
    from trainer.sim.tasks import task_names

    tasks = task_names(options.tasks)
    who = Who(options.policy, (options.size, options.size) if options.size else None, options.device)
    result = evaluate(who, tasks, options.episodes, options.workers, options.steps_per_chunk, options.video)
    lines = [f"{name:28} {_success(each)}" for name, each in [*result["tasks"].items(), ("all", result)]]
    return result, "\n".join(lines + result.get("videos", []))


def _success(rate: dict[str, Any]) -> str:
    low, high = rate["interval"]
    share, of = rate["success_rate"], f"{rate['successes']} of {rate['episodes']}"
    return f"{share:6.1%}  ({of}; 95 % interval {low:.1%} to {high:.1%}; {rate['steps']:.0f} steps)"


def demos(options: argparse.Namespace) -> tuple[Any, str]:
    from trainer.sim.demos import demonstrations
    from trainer.sim.render import check_cameras
    from trainer.sim.tasks import task_names

    tasks, cameras = task_names(options.tasks), check_cameras(options.cameras.split(","))
    result = demonstrations(options.out, tasks, options.episodes, cameras, options.size, options.depth, options.workers)
    failures = (
        f"; {result['failed']} failed and are left out: {', '.join(result['failures'])}" if result["failed"] else ""
    )
    return result, f"{options.out}: {result['episodes']} episodes, {result['frames']} frames{failures}"


def scenes(options: argparse.Namespace) -> tuple[Any, str]:
    from catalog.errors import UsageError
    from trainer.sim.scenes import Series, make_scenes
    from trainer.sim.tasks import task_names

    low, dots, high = options.views.partition("..")
    if not (low.isdigit() and (high or low).isdigit()):
        raise UsageError(f"--views is {options.views}; expected a number or a range such as 1..3")
    standard, tasks = (task_names(names) if names else () for names in (options.standard, options.tasks))
    if standard and tasks:
        raise UsageError("--tasks names tasks to show at random, --standard by fixed cameras; give one of them")
    views = (int(low), int(high if dots else low))
    result = make_scenes(
        Series(options.out, options.count, views, options.size, options.seed, standard, tasks), options.workers
    )
    return result, f"{options.out}: {result['scenes']} scenes, {result['made']} of them new"

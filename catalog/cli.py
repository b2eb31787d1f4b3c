"""The command `catalog`: what datasets and caches are there, and whether they belong together."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catalog.command import run, subcommand
from catalog.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="catalog", description="Datasets and feature caches: what is there, what belongs together."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = subcommand(commands, "ls", ls, "the caches in a folder")
    command.add_argument("folder", type=Path, nargs="?", default=Path("."), metavar="DIR")

    command = subcommand(commands, "info", info, "a dataset: format, episodes, cameras, tasks")
    command.add_argument("dataset", type=Path, metavar="DATASET")

    command = subcommand(commands, "check", check, "whether a cache has the features of a dataset's episodes")
    command.add_argument("cache", type=Path, metavar="NAME.zarr")
    command.add_argument("--dataset", type=Path, required=True, metavar="DIR")
    command.add_argument("--episodes", help="0:12 or 3,7,20:30; default all")

    return run(parser, arguments)


def ls(options: argparse.Namespace) -> tuple[Any, str]:
    from catalog.cache.header import is_sealed, read_header

    if not options.folder.is_dir():
        raise UserError(f"{options.folder}: no such folder")
    caches: list[dict[str, Any]] = []
    for path in sorted(options.folder.rglob("*.zarr")):
        try:
            header = read_header(path)
        except UserError as error:
            caches.append({"cache": str(path), "problem": str(error)})
            continue
        caches.append(
            {
                "cache": str(path),
                "sealed": is_sealed(path),
                "teacher": header.recipe.teacher["name"],
                "taps": list(header.recipe.taps),
                "frames": header.frames,
                "cache_id": header.cache_id,
            }
        )
    return caches, "\n".join(_line(each) for each in caches) or f"no caches in {options.folder}"


def _line(cache: dict[str, Any]) -> str:
    if "problem" in cache:
        return str(cache["problem"])
    state = "sealed" if cache["sealed"] else "NOT SEALED"
    words = [cache["cache"], cache["teacher"], ",".join(cache["taps"]), f"{cache['frames']} frames", state]
    return "  ".join([*words, cache["cache_id"][:12]])


def info(options: argparse.Namespace) -> tuple[Any, str]:
    from catalog.datasets import open_dataset

    dataset = open_dataset(options.dataset)
    tasks = sorted({task for episode in dataset.episodes.values() for task in episode.tasks})
    frames = sum(episode.length for episode in dataset.episodes.values())
    cameras = {key: [camera.height, camera.width] for key, camera in dataset.cameras.items()}
    result = {
        "dataset": str(options.dataset),
        "format": dataset.format,
        "fps": dataset.fps,
        "episodes": len(dataset.episodes),
        "frames": frames,
        "cameras": cameras,
        "tasks": tasks,
    }
    lines = [
        f"{options.dataset}: {dataset.format}, {len(dataset.episodes)} episodes, {frames} frames at {dataset.fps:g} fps"
    ]
    lines += [f"  camera {key}: {height}x{width}" for key, (height, width) in cameras.items()]
    lines += [f"  task: {task}" for task in tasks]
    return result, "\n".join(lines)


def check(options: argparse.Namespace) -> tuple[Any, str]:
    from catalog import open_cache, open_dataset
    from catalog.datasets.selection import select_episodes

    dataset = open_dataset(options.dataset)
    episodes = select_episodes(dataset, options.episodes)
    open_cache(options.cache, dataset).check(dataset, episodes)
    return {
        "ok": True,
        "episodes": len(episodes),
    }, f"all {len(episodes)} episodes of {options.dataset} have their features"


if __name__ == "__main__":
    sys.exit(main())

"""The command `pipeline`: make, look at and check feature caches."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from catalog.command import run, size, subcommand
from catalog.errors import UserError

if TYPE_CHECKING:
    from pipeline.extract import Executor


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="pipeline", description="Run a frozen 3D teacher once over a dataset, keep its features."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = subcommand(
        commands, "extract", extract, "extract a feature cache from a dataset; the same command resumes"
    )
    command.add_argument("--dataset", type=Path, required=True, metavar="DIR")
    command.add_argument("--out", type=Path, required=True, metavar="NAME.zarr")
    command.add_argument("--teacher", default="vggt", help="vggt (default) or vggt-mini")
    command.add_argument(
        "--weights", type=Path, metavar="FILE", help="the teacher's checkpoint; without it: seeded, untrained"
    )
    command.add_argument("--teacher-config", type=Path, metavar="FILE.json", help="sizes other than the teacher's own")
    command.add_argument(
        "--views", required=True, help="cameras in the teacher's order, by key or last part: corner2,gripperPOV"
    )
    command.add_argument("--grid", default="16x16", help="stored token grid, ROWSxCOLUMNS or native (default 16x16)")
    command.add_argument("--layers", default="-1", help="teacher layers to store: -1 (default, the last) or 11,23")
    command.add_argument(
        "--outputs", default="tokens", help="tokens,special,depth,confidence,points,points_confidence,pose"
    )
    command.add_argument("--image-size", type=int, help="pixels; default the teacher's own")
    command.add_argument("--framing", default="crop", help="crop (default) or pad")
    command.add_argument("--episodes", help="0:12 or 3,7,20:30; default all")
    command.add_argument("--stride", type=_positive, default=1, help="every n-th frame of an episode (default 1)")
    command.add_argument("--shard-rows", type=_positive, help="rows a shard; default by size")
    command.add_argument("--batch", type=_positive, help="timesteps a forward; default 4 on a CPU, 16 on a GPU")
    command.add_argument("--executor", choices=("ray", "inline"), default="ray")
    command.add_argument("--address", help="a Ray cluster: auto or HOST:PORT; default: start one on this machine")
    command.add_argument("--actors", type=_positive, help="default: as many as the cluster has room for")
    command.add_argument("--gpus-per-actor", type=float, default=None)
    command.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")

    command = subcommand(commands, "status", status, "what a cache holds and how far it is")
    command.add_argument("cache", type=Path, metavar="NAME.zarr")

    command = subcommand(commands, "verify", verify, "compare every file of a sealed cache with its manifest")
    command.add_argument("cache", type=Path, metavar="NAME.zarr")

    command = subcommand(
        commands, "preview", preview, "a PNG: frames beside the principal components of their features"
    )
    command.add_argument("cache", type=Path, metavar="NAME.zarr")
    command.add_argument("--dataset", type=Path, metavar="DIR", help="default: where the cache was made from")
    command.add_argument("--frames", type=_positive, default=6)
    command.add_argument("--out", type=Path, metavar="FILE.png", help="default: NAME.png beside the cache")

    from pipeline.training.cli import add_commands

    add_commands(commands.add_parser("teacher", help="train a small VGGT on rendered scenes, score any on them"))
    return run(parser, arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {number}, expected at least 1")
    return number


def _layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(layer) for layer in text.split(","))
    except ValueError:
        raise UserError(f"--layers {text}: expected numbers such as -1 or 11,23") from None


def _config(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object of teacher sizes")
    return value


def extract(options: argparse.Namespace) -> tuple[Any, str]:
    import torch
    from tqdm import tqdm

    from pipeline.extract import Request, plan
    from pipeline.extract import extract as make

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no usable GPU; use --device cpu")
    request = Request(
        dataset=options.dataset,
        out=options.out,
        teacher=options.teacher,
        weights=options.weights,
        teacher_config=_config(options.teacher_config),
        views=tuple(options.views.split(",")),
        grid=options.grid,
        layers=_layers(options.layers),
        outputs=tuple(options.outputs.split(",")),
        image_size=options.image_size,
        framing=options.framing,
        episodes=options.episodes,
        stride=options.stride,
        shard_rows=options.shard_rows,
        device=device,
        batch=options.batch,
    )
    job, shards = plan(request)
    if not job.header.recipe.teacher["trained"]:
        sys.stderr.write(f"pipeline: {options.teacher} runs with seeded, UNTRAINED weights: no --weights given\n")
    execute = _executor(options, device)
    start = monotonic()
    with tqdm(total=job.header.frames, unit="frame", desc="extract", smoothing=0.1, file=sys.stderr) as bar:

        def progress(rows: int, before: bool) -> None:
            if before:  # rows of an earlier run say nothing about this run's rate
                bar.initial += rows
            bar.update(rows)

        summary = make(job, shards, execute, options.executor, progress)
    seconds = monotonic() - start
    result = asdict(summary) | {
        "out": str(summary.out),
        "ok": summary.sealed,
        "seconds": round(seconds, 3),
        "frames_per_second": round(summary.rows_made / seconds, 3),
        "bytes_per_frame": round(summary.bytes / max(1, summary.frames)),
    }
    lines = [f"shard {failure.shard} failed: {failure.reason}" for failure in summary.failures]
    if summary.sealed:
        made = f"{summary.rows_made} frames in {seconds:.1f} s" if summary.shards_made else "nothing left to do"
        lines.append(
            f"{options.out}: sealed, {summary.frames} frames in {summary.shards} shards, {size(summary.bytes)} "
            f"({size(result['bytes_per_frame'])} a frame); {made}"
        )
    else:
        lines.append(
            f"{options.out}: NOT sealed, {len(summary.failures)} of {summary.shards} shards failed; the rest is kept"
        )
    return result, "\n".join(lines)


def _executor(options: argparse.Namespace, device: str) -> "Executor":
    if options.executor == "inline":
        from pipeline import inline

        return inline.run
    from dataclasses import replace

    from pipeline import actors

    actors.connect(options.address)
    gpus = options.gpus_per_actor if options.gpus_per_actor is not None else float(device == "cuda")
    count = options.actors or actors.default_actors(gpus)
    threads = actors.threads_per_actor(count)
    return lambda job, shards: actors.run(replace(job, threads=threads), shards, count, gpus)


def status(options: argparse.Namespace) -> tuple[Any, str]:
    from pipeline.status import status as describe

    result = describe(options.cache)
    state = "sealed" if result["sealed"] else "not sealed: run the same `pipeline extract` again to finish it"
    frames, shards = (f"{result[f'{unit}_done']} of {result[unit]} {unit}" for unit in ("frames", "shards"))
    rows, columns = result["grid"]
    trained = "" if result["trained"] else " (UNTRAINED)"
    lines = [
        f"{options.cache}: {state}",
        f"  {frames}, {shards}, {result['episodes']} episodes, {size(result['bytes'])}",
        f"  teacher {result['teacher']}{trained}, grid {rows}x{columns}, views {', '.join(result['views'])}",
        *(f"  {tap}: {size(count)} a frame" for tap, count in result["bytes_per_frame"].items()),
        f"  cache_id {result['cache_id']}",
    ]
    return result, "\n".join(lines)


def verify(options: argparse.Namespace) -> tuple[Any, str]:
    from tqdm import tqdm

    from catalog.cache.verify import verify as check

    with tqdm(unit="B", unit_scale=True, desc="verify", file=sys.stderr) as bar:
        problems = check(options.cache, bar.update)
    text = "\n".join(problems) if problems else f"{options.cache}: every file is as its manifest says"
    return {"ok": not problems, "problems": problems}, text


def preview(options: argparse.Namespace) -> tuple[Any, str]:
    from catalog import open_cache
    from pipeline import provenance
    from pipeline.preview import preview as draw

    runs = provenance.read(options.cache)
    dataset = options.dataset or (Path(runs[-1]["dataset"]) if runs else None)
    if dataset is None or not dataset.is_dir():
        raise UserError(f"{options.cache}: its dataset is not at {dataset}; say where it is with --dataset")
    out = options.out or options.cache.with_suffix(".png")
    draw(open_cache(options.cache, dataset), out, options.frames)
    return {"preview": str(out)}, str(out)


if __name__ == "__main__":
    sys.exit(main())

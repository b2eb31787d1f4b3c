"""Extract a cache: plan its shards, make those without a receipt, seal it.

Running the same command again resumes: what has a valid receipt is done, and the sealed cache is byte for byte
the one that an uninterrupted run makes.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.cache.commit import TEMPORARY, sweep
from catalog.cache.header import Header, is_sealed, read_header
from catalog.cache.layout import Storage, default_shard_rows, write_metadata
from catalog.cache.receipt import Receipt, read_receipt
from catalog.cache.recipe import OUTPUTS, TOKEN_OUTPUTS, Recipe, differences, parse_grid
from catalog.cache.seal import seal
from catalog.cache.shards import Shard, plan_shards
from catalog.datasets import open_dataset
from catalog.datasets.dataset import Dataset, resolve_views
from catalog.datasets.digests import episode_digests, fingerprint
from catalog.datasets.selection import select_episodes
from catalog.errors import UserError, nearest
from pipeline import provenance
from pipeline.failure import Failure
from pipeline.job import Job
from pipeline.teachers import load_teacher
from pipeline.teachers.framing import framing
from pipeline.teachers.teacher import Teacher

CPU_BATCH = 4  # timesteps a forward; on a CPU larger batches gain nothing and cost memory
GPU_BATCH = 16


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    dataset: Path
    out: Path
    teacher: str
    weights: Path | None
    teacher_config: dict[str, Any] | None
    views: tuple[str, ...]
    grid: str  # "16x16" or "native"
    layers: tuple[int, ...] = (-1,)
    outputs: tuple[str, ...] = ("tokens",)
    image_size: int | None = None  # None: the teacher's own
    framing: str = "crop"
    episodes: str | None = None
    stride: int = 1
    shard_rows: int | None = None
    device: str = "cpu"
    batch: int | None = None


@dataclass(frozen=True)
class Summary:
    """What an extraction did."""

    out: Path
    cache_id: str
    frames: int
    rows_made: int
    shards: int
    shards_made: int
    bytes: int
    sealed: bool
    failures: tuple[Failure, ...]


def make_recipe(request: Request, dataset: Dataset, teacher: Teacher) -> Recipe:
    """The recipe that a request means for this dataset. UserError for what cannot be."""
    views = resolve_views(dataset, request.views)
    for output in request.outputs:
        if output not in OUTPUTS:
            raise UserError(f"no output '{output}'; expected some of: {nearest(output, OUTPUTS)}")
    size = request.image_size or teacher.image_size
    cameras = [dataset.cameras[view] for view in views]
    framings = [framing(request.framing, camera.height, camera.width, size, teacher.patch) for camera in cameras]
    sizes = {each.size for each in framings}
    if len(sizes) != 1:
        shown = ", ".join(f"{view} {each.size}" for view, each in zip(views, framings, strict=True))
        raise UserError(
            f"the views come to different sizes under framing '{request.framing}' ({shown}); use --framing pad"
        )
    (height, width) = sizes.pop()
    native = (height // teacher.patch, width // teacher.patch)
    wants_layers = any(output in TOKEN_OUTPUTS for output in request.outputs)
    return Recipe(
        teacher={
            "name": teacher.name,
            "config": teacher.config,
            "weights_sha256": teacher.weights_sha256,
            "trained": teacher.trained,
            "layers": teacher.layers,
            "channels": teacher.channels,
            "special": teacher.special,
            "licence": teacher.licence,
        },
        layers=tuple(sorted({teacher.resolve_layer(layer) for layer in request.layers})) if wants_layers else (),
        outputs=tuple(output for output in OUTPUTS if output in request.outputs),
        views=views,
        framing={view: each.describe() for view, each in zip(views, framings, strict=True)},
        image_size=(height, width),
        native_grid=native,
        grid=parse_grid(request.grid, native),
        absent="refuse",
        window=(0,),
        dtype=teacher.dtype,
    )


def plan(request: Request) -> tuple[Job, list[Shard]]:
    """The job and its shards: a function of dataset, teacher and request alone; nothing is written."""
    dataset = open_dataset(request.dataset)
    teacher = load_teacher(request.teacher, request.weights, request.teacher_config, device=request.device)
    recipe = make_recipe(request, dataset, teacher)
    chosen = select_episodes(dataset, request.episodes)
    digests = episode_digests(dataset, recipe.views, chosen)
    frames = {episode: range(0, dataset.episodes[episode].length, request.stride) for episode in chosen}
    # Episodes with the same pixels share their rows, so they count once.
    rows = sum(len(frames[episode]) for episode in {digests[episode]: episode for episode in chosen}.values())
    storage = Storage(shard_rows=request.shard_rows or default_shard_rows(recipe, rows), stride=request.stride)
    shards = plan_shards([(digests[episode], episode, frames[episode]) for episode in chosen], storage.shard_rows)
    header = Header(
        recipe=recipe,
        storage=storage,
        fingerprint=fingerprint([digests[episode] for episode in chosen]),
        episodes=len(set(digests.values())),
        frames=sum(shard.length for shard in shards),
        shards=len(shards),
    )
    job = Job(
        root=request.out.absolute(),
        header=header,
        dataset=request.dataset.absolute(),
        teacher=request.teacher,
        weights=request.weights.absolute() if request.weights else None,
        teacher_config=request.teacher_config,
        device=request.device,
        threads=os.cpu_count() or 1,
        batch=request.batch or (CPU_BATCH if request.device == "cpu" else GPU_BATCH),
    )
    return job, shards


Executor = Callable[[Job, Sequence[Shard]], Iterator[Receipt | Failure]]


def extract(
    job: Job, shards: list[Shard], execute: Executor, executor: str, progress: Callable[[int, bool], None]
) -> Summary:
    """Make the missing shards through `execute` and seal the cache.

    `progress(rows, done_before)` is told of the rows that were there already, once, and then of every shard.
    Raises UserError where the output is something else, or another extraction is writing it.
    """
    _begin(job.root, job.header)
    with _locked(job.root):
        header = job.header
        if is_sealed(job.root):
            receipts = [read_receipt(job.root, shard.index, header.cache_id) for shard in shards]
            total = sum(receipt.bytes for receipt in receipts if receipt)
            progress(header.frames, True)
            return Summary(job.root, header.cache_id, header.frames, 0, header.shards, 0, total, True, ())
        sweep(job.root)
        if not (job.root / "zarr.json").is_file():
            write_metadata(job.root, header.to_json(), header.recipe, header.storage, header.shards)
        provenance.begin(job.root, job.dataset, job.device, executor)
        todo, total, rows_made = [], 0, 0
        failures: list[Failure] = []
        for shard in shards:
            receipt = read_receipt(job.root, shard.index, header.cache_id)
            if receipt is None:
                todo.append(shard)
            else:
                total += receipt.bytes
                progress(receipt.rows, True)
        for outcome in execute(job, todo) if todo else ():
            if isinstance(outcome, Failure):
                failures.append(outcome)
            else:
                total += outcome.bytes
                rows_made += outcome.rows
                progress(outcome.rows, False)
        if not failures:
            sweep(job.root)
            provenance.finish(job.root)
            seal(job.root, header.cache_id, header.recipe, header.shards)
        return Summary(
            out=job.root,
            cache_id=header.cache_id,
            frames=header.frames,
            rows_made=rows_made,
            shards=header.shards,
            shards_made=len(todo) - len(failures),
            bytes=total,
            sealed=not failures,
            failures=tuple(failures),
        )


def _begin(root: Path, header: Header) -> None:
    """Make the output folder, or refuse one that holds anything but the beginning of this very cache."""
    if (root / "zarr.json").is_file():
        found = read_header(root)
        if found.cache_id != header.cache_id:
            lines = differences(found.to_json(), header.to_json())
            what = "; ".join(line for line in lines if "_id" not in line.split(":")[0])
            raise UserError(
                f"{root} exists and is another cache ({what}); it is never overwritten: choose another --out"
            )
    elif root.exists() and any(
        path.is_file() and path.name != "zarr.json" and not path.name.startswith(TEMPORARY) for path in root.rglob("*")
    ):
        raise UserError(f"{root} exists and is not a feature cache; it is never overwritten: choose another --out")
    root.mkdir(parents=True, exist_ok=True)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the folder itself, so that a killed run leaves no lock behind."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{root}: another extraction is writing this cache; wait for it or choose another --out"
            ) from None
        yield
    finally:
        os.close(descriptor)

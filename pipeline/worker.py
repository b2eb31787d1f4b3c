"""Make one shard: decode its frames, run the teacher, write its features. The same code in every executor."""

import hashlib
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from catalog.cache.layout import arrays
from catalog.cache.receipt import FilledSpan, Receipt
from catalog.cache.shards import Shard, Span
from catalog.cache.writer import ShardWriter
from catalog.datasets import open_dataset
from catalog.errors import UserError
from pipeline.job import Job
from pipeline.teachers import load_teacher
from pipeline.teachers.framing import Framing

Images = tuple[NDArray[np.uint8], ...]  # one timestep: RGB [H, W, 3] a view


class Worker:
    """Holds the frozen teacher and the open dataset; makes shard after shard."""

    def __init__(self, job: Job) -> None:
        if job.device == "cpu":
            torch.set_num_threads(job.threads)
        self.job = job
        self.recipe = job.header.recipe
        self.dataset = open_dataset(job.dataset)
        self.teacher = load_teacher(job.teacher, job.weights, job.teacher_config, device=job.device)
        if self.teacher.weights_sha256 != self.recipe.teacher["weights_sha256"]:
            raise UserError(
                f"{job.weights}: these weights are not those of the recipe; they changed since the job began"
            )
        self.framings = [Framing.from_description(self.recipe.framing[view]) for view in self.recipe.views]

    def extract(self, shard: Shard) -> Receipt:
        """Write a shard and its receipt; on any error nothing of it is left."""
        storage = self.job.header.storage
        specs, views = arrays(self.recipe), len(self.recipe.views)
        with ShardWriter(
            self.job.root, self.job.header.cache_id, specs, shard.index, storage.shard_rows, views
        ) as writer:
            return writer.finish([self._fill(writer, span) for span in shard.spans])

    def _fill(self, writer: ShardWriter, span: Span) -> FilledSpan:
        columns = self.dataset.columns(span.episode_index)
        pixels: list[str] = []
        frames = self.dataset.decode(span.episode_index, self.recipe.views, list(span.frames))
        rows = iter(span.rows)
        while batch := list(islice(_all_present(frames, span), self.job.batch)):
            features = self.features(batch)
            for i, images in enumerate(batch):
                row = next(rows)
                try:
                    writer.row(row, {tap: values[i] for tap, values in features.items()}, [True] * len(images))
                except ValueError as error:
                    frame = span.frames[row - span.row]
                    raise UserError(
                        f"episode {span.episode_index}, frame {frame}: {error}; check weights and image"
                    ) from None
                pixels.append(pixel_digest(images))
        if len(pixels) != len(span.frames):
            raise UserError(f"episode {span.episode_index}: {len(pixels)} of {len(span.frames)} frames decoded")
        return FilledSpan(
            episode=span.episode,
            episode_index=span.episode_index,
            row=span.row,
            frames=tuple(span.frames),
            timestamps=tuple(float(columns.timestamp[frame]) for frame in span.frames),
            present=((True,) * len(self.recipe.views),) * len(span.frames),
            pixels=tuple(pixels),
        )

    def features(self, batch: list[Images]) -> dict[str, NDArray[np.float32]]:
        """The teacher's features of some timesteps, by tap: float32 [timesteps, views, *tail]."""
        views = [
            framing.apply(torch.from_numpy(np.stack([images[view] for images in batch])).to(self.job.device))
            for view, framing in enumerate(self.framings)
        ]
        out = self.teacher(torch.stack(views, dim=1), layers=list(self.recipe.layers), outputs=self.recipe.outputs)
        features = {}
        for tap in self.recipe.taps:
            output, _, layer = tap.partition("/")
            values = getattr(out, output)
            values = values[int(layer)] if layer else values
            if output == "tokens":
                values = pool(values, self.recipe.native_grid, self.recipe.grid)
            features[tap] = values.float().cpu().numpy()
        return features


def pool(tokens_BVNC: torch.Tensor, native: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """Tokens of the native grid resized to another (bilinear, align_corners: as Spatial Forcing pools)."""
    if native == grid:
        return tokens_BVNC
    B, V, _, C = tokens_BVNC.shape
    maps = tokens_BVNC.float().reshape(B * V, *native, C).permute(0, 3, 1, 2)
    pooled = F.interpolate(maps, size=grid, mode="bilinear", align_corners=True)
    return pooled.permute(0, 2, 3, 1).reshape(B, V, -1, C)


def pixel_digest(images: Images) -> str:
    """First 16 bytes, hex, of sha256 over the decoded images of all views."""
    sha256 = hashlib.sha256()
    for image in images:
        sha256.update(np.ascontiguousarray(image))
    return sha256.hexdigest()[:32]


def _all_present(frames: Iterator[tuple[NDArray[np.uint8] | None, ...]], span: Span) -> Iterator[Images]:
    for frame, images in zip(span.frames, frames, strict=False):
        present = tuple(image for image in images if image is not None)
        if len(present) != len(images):
            raise UserError(f"episode {span.episode_index}, frame {frame}: a camera has no image; leave that view out")
        yield present

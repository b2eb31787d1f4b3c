"""A picture of a cache: frames beside the first three principal components of their features.

All frames and views share one basis and one colour scale, so equal colours mean equal features.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from catalog.cache.cache import Cache

TILE = 192  # pixels
GAP = 8
LABEL = 22


def preview(cache: Cache, path: Path, frames: int = 6) -> None:
    """Write a PNG of `frames` frames, spread evenly over the cache. The cache must be opened with its dataset."""
    assert cache.dataset is not None
    recipe = cache.recipe
    tap = next(name for name in recipe.taps if name.startswith("tokens/"))
    named = _spread(cache, frames)
    rows = np.concatenate([cache.rows_of(episode, frame) for episode, frame in named])
    colours = components(cache.read(rows, tap))  # [frames, views, tokens, 3]
    width = GAP + len(recipe.views) * 2 * (TILE + GAP)
    height = 2 * LABEL + GAP + len(named) * (TILE + LABEL)
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    trained = (
        "" if recipe.teacher["trained"] else ", UNTRAINED weights: colours show structure of the image, not geometry"
    )
    draw.text(
        (GAP, 4), f"{recipe.teacher['name']} {tap}, grid {recipe.grid[0]}x{recipe.grid[1]}{trained}", "black", font
    )
    for number, view in enumerate(recipe.views):
        draw.text((GAP + number * 2 * (TILE + GAP), LABEL), view.rsplit(".", 1)[-1], "black", font)
    for line, (episode, frame) in enumerate(named):
        top = 2 * LABEL + line * (TILE + LABEL)
        task = cache.dataset.columns(episode).task[frame]
        draw.text((GAP, top), f"episode {episode}, frame {frame}: {task}", "dimgray", font)
        for number, view in enumerate(recipe.views):
            left = GAP + number * 2 * (TILE + GAP)
            image = Image.fromarray(cache.dataset.frames(episode, [frame], view)[0])
            sheet.paste(image.resize(_fit(image.size)), (left, top + LABEL))
            tokens = colours[line, number].reshape(*recipe.grid, 3)
            shown = Image.fromarray(tokens).resize(_fit((recipe.grid[1], recipe.grid[0])), Image.Resampling.NEAREST)
            sheet.paste(shown, (left + TILE + GAP, top + LABEL))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def components(tokens: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The first three principal components of tokens [..., channels] as colours uint8 [..., 3]."""
    flat = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    flat -= flat.mean(axis=0)
    _, basis = np.linalg.eigh(flat.T @ flat)
    scores = flat @ basis[:, -1:-4:-1]
    low, high = np.percentile(scores, [2, 98], axis=0)
    colours = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1) * 255
    return colours.astype(np.uint8).reshape(*tokens.shape[:-1], 3)


def _spread(cache: Cache, frames: int) -> list[tuple[int, int]]:
    """(episode, frame) of the opened dataset, evenly over its episodes that the cache has."""
    assert cache.dataset is not None
    episodes = [episode for episode in cache.dataset.episodes if cache.digest(episode) in cache.episodes]
    chosen = [episodes[i] for i in np.linspace(0, len(episodes) - 1, frames).round().astype(int)]
    places = np.linspace(0.1, 0.9, frames)
    named = []
    for episode, place in zip(chosen, places, strict=True):
        stored = cache.frames_of(episode)
        named.append((episode, int(stored[int(place * (len(stored) - 1))])))
    return named


def _fit(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height scaled so that the longer is a tile."""
    scale = TILE / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

"""From a config to what the loop needs. Everything that can be wrong with it is found here, before the first step."""

from dataclasses import dataclass
from typing import Any

import torch

from catalog.datasets import open_dataset
from catalog.datasets.dataset import resolve_views
from catalog.datasets.digests import episode_digests, fingerprint
from catalog.datasets.selection import select_episodes
from catalog.datasets.statistics import column_statistics
from catalog.errors import UserError
from trainer.config import RunConfig
from trainer.models import paligemma
from trainer.normalise import Bounds
from trainer.samples import Samples, read_numbers
from trainer.targets import CachedFeatures, Teacher


@dataclass(frozen=True)
class Prepared:
    policy: paligemma.PaliGemmaPolicy
    samples: Samples
    cached: CachedFeatures | None  # where alignment.mode is cached
    teacher: Teacher | None  # where it is online
    identity: dict[str, Any]  # of what is trained on: the same contents give the same identity, wherever they lie
    statistics: dict[str, Any]


def prepare(config: RunConfig, device: torch.device) -> Prepared:
    """Open dataset and cache (or teacher), compute the statistics, build the student.

    Raises UserError for whatever does not exist or does not fit together.
    """
    dataset = open_dataset(config.data.dataset)
    episodes = select_episodes(dataset, config.data.episodes)
    views = resolve_views(dataset, config.data.views) if config.data.views else tuple(dataset.cameras)
    statistics = column_statistics(dataset, episodes)
    if missing := {"state", "action"} - set(statistics):
        raise UserError(f"{dataset.path}: no {' and no '.join(sorted(missing))}; training needs states and actions")
    state_bounds, action_bounds = Bounds.of(statistics["state"]), Bounds.of(statistics["action"])
    numbers = read_numbers(dataset, episodes)

    cached = teacher = None
    alignment = config.alignment
    if alignment.mode == "cached":
        assert config.data.cache is not None
        cached = CachedFeatures(
            config.data.cache, dataset, views, numbers.episode, numbers.frame, alignment.teacher_layer
        )
    policy = paligemma.build(config.model, numbers.state.shape[1], numbers.action.shape[1])
    if alignment.mode == "online":
        teacher = Teacher(alignment, dataset, views, device)
    samples = Samples(
        dataset,
        views,
        numbers,
        state_bounds,
        action_bounds,
        policy.tokeniser,
        policy.image_size,
        policy.chunk,
        config.batch_size,
        config.seed,
        cached=cached,
        keep_sources=teacher is not None,
    )
    # Reads every video byte once, as the check of a cache does.
    digests = cached.digests(episodes) if cached else episode_digests(dataset, views, episodes).values()
    identity = {
        "dataset": fingerprint(digests),
        "numbers": numbers.digest(),
        "features": cached.identity if cached else teacher.identity if teacher else None,
    }
    bounds = {"state": state_bounds.to_json(), "action": action_bounds.to_json()}
    return Prepared(policy, samples, cached, teacher, identity, bounds)

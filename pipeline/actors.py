"""The executor on Ray: plain actors, a shard a call, at most two calls in flight an actor.

The only file that imports Ray. An actor that dies is restarted by Ray without limit; a shard is tried
`TRIES` times, so one poisonous frame fails its shard by name instead of looping.
"""

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from catalog.cache.receipt import Receipt
from catalog.cache.shards import Shard
from catalog.errors import UserError
from pipeline.failure import Failure
from pipeline.job import Job
from pipeline.worker import Worker

TRIES = 3
IN_FLIGHT = 2  # the next shard waits at the actor while it makes one


def connect(address: str | None) -> None:
    """Join the cluster at `address` (`auto`: the one this machine belongs to), or start one for this process."""
    if ray.is_initialized():
        return
    try:
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            include_dashboard=False if address is None else None,
        )
    except (ConnectionError, RayError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at '{address}' ({str(error).splitlines()[0]}); "
            "start one with `ray start --head`, leave --address out, or use --executor inline"
        ) from None


def default_actors(gpus_per_actor: float) -> int:
    """As many actors as the cluster has room for: by GPUs, or all CPUs but one, which decoding and Ray need."""
    resources = ray.cluster_resources()
    if gpus_per_actor:
        return max(1, int(resources.get("GPU", 0) / gpus_per_actor))
    return max(1, int(resources.get("CPU", 1)) - 1)


def run(job: Job, shards: Sequence[Shard], actors: int, gpus_per_actor: float = 0.0) -> Iterator[Receipt | Failure]:
    """Make `shards` on `actors` actors of the connected cluster; receipts and failures in order of arrival."""
    actor_class: Any = ray.remote(num_cpus=1, num_gpus=gpus_per_actor, max_restarts=-1)(Worker)
    pool = [actor_class.remote(job) for _ in range(min(actors, len(shards)))]
    waiting = deque((shard, 1) for shard in shards)
    flying: dict[ray.ObjectRef, tuple[int, Shard, int]] = {}  # call -> (actor, shard, which try)
    load = [0] * len(pool)
    try:
        while waiting or flying:
            while waiting and min(load) < IN_FLIGHT:
                actor = load.index(min(load))
                shard, attempt = waiting.popleft()
                flying[pool[actor].extract.remote(shard)] = (actor, shard, attempt)
                load[actor] += 1
            for call in ray.wait(list(flying), num_returns=1)[0]:
                actor, shard, attempt = flying.pop(call)
                load[actor] -= 1
                try:
                    yield ray.get(call)
                except (RayTaskError, RayActorError) as error:
                    if attempt < TRIES:
                        waiting.append((shard, attempt + 1))
                    else:
                        yield Failure(shard.index, f"{_reason(error)} (tried {TRIES} times)")
    finally:
        for handle in pool:
            ray.kill(handle)


def _reason(error: RayTaskError | RayActorError) -> str:
    cause = getattr(error, "cause", None)
    return str(cause) if isinstance(cause, UserError) else str(error).strip().splitlines()[-1]


def threads_per_actor(actors: int) -> int:
    return max(1, (os.cpu_count() or 1) // actors)

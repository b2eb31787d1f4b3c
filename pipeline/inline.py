"""The executor without Ray: the shards one after the other in this process."""

from collections.abc import Iterator, Sequence

from catalog.cache.receipt import Receipt
from catalog.cache.shards import Shard
from catalog.errors import UserError
from pipeline.failure import Failure
from pipeline.job import Job
from pipeline.worker import Worker


def run(job: Job, shards: Sequence[Shard]) -> Iterator[Receipt | Failure]:
    """Make `shards`; a shard that cannot be made is a Failure and the others go on."""
    worker = Worker(job)
    for shard in shards:
        try:
            yield worker.extract(shard)
        except UserError as error:
            yield Failure(shard.index, str(error))

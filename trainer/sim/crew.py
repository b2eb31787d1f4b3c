"""Work by several processes: items in, results out as they come, with a progress bar.

Processes are spawned, not forked: an OpenGL context and torch's threads do not survive a fork. Each does its
arithmetic on one thread, since there is a process a core. Ctrl-C is for the first process alone: the others finish
what they have in hand.
"""

import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

from tqdm import tqdm

from catalog.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def do_all(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    unit: str,
    done: int = 0,
    worth: Callable[[Result], int] = lambda result: 1,
    total: int | None = None,
) -> Generator[Result, None, None]:
    """work(item) of every item, in any order; by this process itself if `workers` is 1.

    `work` and what goes in and out are pickled. Raises what `work` raises, after stopping what has not begun; UserError
    if a process is killed. The progress bar counts `unit`s: `done` of `total` (None: of these items) were finished
    earlier, and a result is `worth` one.
    """
    if workers < 1:
        raise UserError(f"--workers is {workers}; expected at least 1")
    with tqdm(total=total or done + len(items), initial=done, unit=unit, file=sys.stderr) as bar:
        if workers == 1 or len(items) <= 1:
            for item in items:
                result = work(item)
                bar.update(worth(result))
                yield result
            return
        with _pool(min(workers, len(items))) as pool:
            futures: list[Future[Result]] = [pool.submit(work, item) for item in items]
            try:
                for future in as_completed(futures):
                    result = future.result()
                    bar.update(worth(result))
                    yield result
            except BrokenProcessPool:
                raise UserError(
                    f"one of {workers} worker processes was killed, most likely for lack of memory; "
                    "run again with fewer --workers"
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    before: dict[str, Any] = {
        name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS")
    }
    os.environ.update(dict.fromkeys(before, "1"))  # read by the new processes when they start
    try:
        with ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
            yield pool
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value

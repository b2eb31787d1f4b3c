"""What was read last: a bounded store that forgets the least recently used."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values whose weights sum to at most `limit`; a heavier one is kept until the next arrives.

    Losing an entry costs time and nothing else, so a pickled copy arrives empty.
    """

    def __init__(self, limit: int, weigh: Callable[[V], int]) -> None:
        self._limit, self._weigh, self._weight = limit, weigh, 0
        self._values: OrderedDict[K, V] = OrderedDict()

    def __reduce__(self) -> tuple[type["Recent[K, V]"], tuple[int, Callable[[V], int]]]:
        return type(self), (self._limit, self._weigh)

    def get(self, key: K) -> V | None:
        value = self._values.pop(key, None)
        if value is not None:
            self._values[key] = value
        return value

    def put(self, key: K, value: V) -> V:
        replaced = self._values.pop(key, None)
        self._weight += self._weigh(value) - (0 if replaced is None else self._weigh(replaced))
        self._values[key] = value
        while self._weight > self._limit and len(self._values) > 1:
            self._weight -= self._weigh(self._values.popitem(last=False)[1])
        return value

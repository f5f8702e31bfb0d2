"""Random choices from a seed: `random.Random`, with ways to choose that cost a quarter of its own."""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Dice(Random):
    """A seeded source of choices."""

    def below(self, count: int) -> int:
        """A number from 0 to `count` - 1."""
        return int(self.random() * count)

    def chance(self, share: float) -> bool:
        """True in this share of calls."""
        return self.random() < share

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[int(self.random() * len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """All of them in another order."""
        found = list(options)
        for last in range(len(found) - 1, 0, -1):
            at = int(self.random() * (last + 1))
            found[last], found[at] = found[at], found[last]
        return found

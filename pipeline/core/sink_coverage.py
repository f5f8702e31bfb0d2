"""Which offsets of the events topic the rows in ClickHouse came from, told by their tokens."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class OffsetRange(NamedTuple):
    """Offsets of one partition, the end not included."""

    topic: str
    partition: int
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition} offsets {self.start} to {self.end}"


def range_of(token: str) -> OffsetRange | None:
    """The range that a token names; None for a token of somebody else's."""
    parts = token.split("/")
    start, _, end = parts[2].partition("-") if len(parts) == 4 else ("", "", "")
    if not (start.isdecimal() and end.isdecimal() and parts[1].isdecimal()):
        return None
    return OffsetRange(parts[0], int(parts[1]), int(start), int(end))


def gaps_of(tokens: Iterable[str], committed: Mapping[tuple[str, int], int]) -> list[OffsetRange]:
    """Ranges between the first of these tokens and the commit of their partition that no token covers.

    A gap is no loss by itself: a range whose lines were no events, or were there already, has no row of its own.

    Args:
        tokens: of the rows that are looked at.
        committed: the group's commit by topic and partition; rows below it should be there.
    """
    ranges: dict[tuple[str, int], list[OffsetRange]] = defaultdict(list)
    for one in map(range_of, tokens):
        if one is not None and (one.topic, one.partition) in committed:
            ranges[one.topic, one.partition].append(one)
    gaps = []
    for (topic, partition), found in sorted(ranges.items()):
        reached = min(one.start for one in found)
        end = committed[topic, partition]
        for one in [*sorted(found), OffsetRange(topic, partition, end, end)]:
            if one.start > reached:
                gaps.append(OffsetRange(topic, partition, reached, one.start))
            reached = max(reached, one.end)
    return gaps

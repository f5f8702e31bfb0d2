"""What a worker writes beside its offset: where to read the results, and how often the start at this offset failed.

Kafka keeps up to 4,096 bytes of metadata with a committed offset; a note takes some 120. Whoever commits by hand, or
with other software, leaves other text or none: that is a note that says nothing, never an error.
"""

from dataclasses import dataclass
from typing import Annotated

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitNote:
    """The metadata of a worker's commit. `offset` below is the offset committed with it.

    Attributes:
        results_from: no answer to an offset at or past `offset` stands before this offset of the results partition.
        delivered_until: offsets below it were delivered before, although they are past the window above `offset`:
            somebody set the offset back by hand. 0 where the window says it all.
        generation: the group's generation that committed.
        incarnation: how many processes held the partition before the one that committed, in the same generation: a
            static member that was replaced keeps its generation.
        starts: how often work began at `offset` and got no further; clean ends do not count.
        isolate_until: below it records run one at a time, each named before it runs, for one of them ends workers.
        suspect: the offset that was named last.
        suspect_starts: how often it was named, each time by a worker that had found it named before.
    """

    results_from: int
    delivered_until: int = 0
    generation: int = 0
    incarnation: int = 0
    starts: int = 0
    isolate_until: int = 0
    suspect: int = -1
    suspect_starts: int = 0

    def encode(self) -> str:
        """The metadata text: a JSON object of the members that say something."""
        members = (
            ("results", self.results_from, None),
            ("delivered_until", self.delivered_until, 0),
            ("generation", self.generation, 0),
            ("incarnation", self.incarnation, 0),
            ("starts", self.starts, 0),
            ("isolate_until", self.isolate_until, 0),
            ("suspect", self.suspect, -1),
            ("suspect_starts", self.suspect_starts, 0),
        )
        return msgspec.json.encode({name: value for name, value, silent in members if value != silent}).decode()


# Kafka counts in 64 bits: larger numbers are no worker's.
_OFFSET_MAX = (1 << 63) - 1
_Count = Annotated[int, msgspec.Meta(ge=0, le=_OFFSET_MAX)]


class _Members(msgspec.Struct):
    results: _Count
    delivered_until: _Count = 0
    generation: _Count = 0
    incarnation: _Count = 0
    starts: _Count = 0
    isolate_until: _Count = 0
    suspect: Annotated[int, msgspec.Meta(ge=-1, le=_OFFSET_MAX)] = -1
    suspect_starts: _Count = 0


_decode = msgspec.json.Decoder(_Members).decode


def read_note(metadata: str) -> CommitNote | None:
    """The note in a commit's metadata, or None where it is none of ours."""
    try:
        members = _decode(metadata)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None
    return CommitNote(
        results_from=members.results,
        delivered_until=members.delivered_until,
        generation=members.generation,
        incarnation=members.incarnation,
        starts=members.starts,
        isolate_until=members.isolate_until,
        suspect=members.suspect,
        suspect_starts=members.suspect_starts,
    )

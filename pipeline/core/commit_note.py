"""What a worker writes beside its offset: where to read the results, and how often the start at this offset failed.

Kafka keeps up to 4,096 bytes of metadata with a committed offset; a note takes some 120. Whoever commits by hand, or
with other software, leaves other text or none: that is a note that says nothing, never an error.
"""

from typing import Annotated

import msgspec

# Kafka counts in 64 bits: larger numbers are no worker's.
_OFFSET_MAX = (1 << 63) - 1
_Count = Annotated[int, msgspec.Meta(ge=0, le=_OFFSET_MAX)]
_Place = Annotated[int, msgspec.Meta(ge=-1, le=_OFFSET_MAX)]


class CommitNote(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"results_from": "results"}):
    """The metadata of a worker's commit. `offset` below is the offset committed with it.

    Attributes:
        results_from: no answer to an offset at or past `offset` stands before this offset of the results partition.
        generation: the group's generation that committed.
        delivered_until: offsets below it were delivered before, although they are past the window above `offset`:
            somebody set the offset back by hand. 0 where the window says it all.
        incarnation: how many processes held the partition before the one that committed, in the same generation: a
            static member that was replaced keeps its generation.
        starts: how often work began at `offset` and got no further; clean ends do not count.
        isolate_until: below it records run one at a time, each named before it runs, for one of them ends workers.
        suspect: the offset that was named last; -1 for none.
        suspect_starts: how often it was named, each time by a worker that had found it named before.
    """

    results_from: _Count
    generation: _Count = 0
    delivered_until: _Count = 0
    incarnation: _Count = 0
    starts: _Count = 0
    isolate_until: _Count = 0
    suspect: _Place = -1
    suspect_starts: _Count = 0

    def encode(self) -> str:
        """The metadata text: a JSON object of the members that say something."""
        return msgspec.json.encode(self).decode()


_decode = msgspec.json.Decoder(CommitNote).decode


def read_note(metadata: str) -> CommitNote | None:
    """The note in a commit's metadata, or None where it is none of ours."""
    try:
        return _decode(metadata)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None

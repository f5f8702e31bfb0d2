"""Every key of a run beside the meaning that it stands for: two meanings that meet anywhere in the run are found."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

# Eight bytes of each: among 15 million two meet by chance in one of 160,000 runs.
_BYTES = 8


class Meeting(NamedTuple):
    """Two requests of a run that have in common what they should not, by their places in the order of notes."""

    first: int
    second: int
    what: str


class KeptKeys:
    """Keys and meanings in the order noted, eight bytes of each."""

    def __init__(self) -> None:
        self._noted = array("Q")

    def __len__(self) -> int:
        return len(self._noted) // 2

    def note(self, key: bytes, meaning: int) -> None:
        """Keeps a key and the digest of the meaning that it stands for."""
        self._noted.append(int.from_bytes(key[:_BYTES], "little"))
        self._noted.append(meaning)

    def rows(self) -> np.ndarray[Any, Any]:
        """A row of two for each."""
        return np.frombuffer(self._noted, "<u8").reshape(-1, 2)


def meetings_in(rows: Sequence[np.ndarray[Any, Any]]) -> Iterator[Meeting]:
    """Every meeting in the rows of all `KeptKeys`: one key of two meanings, or two keys of one meaning.

    Places count through all rows in their order.
    """
    noted = np.concatenate(rows)
    keys, meanings = noted[:, 0], noted[:, 1]
    yield from _meetings(keys, meanings, "two meanings have one key")
    yield from _meetings(meanings, keys, "one meaning has two keys")


def _meetings(equal: np.ndarray[Any, Any], other: np.ndarray[Any, Any], what: str) -> Iterator[Meeting]:
    # Where the other side differs anywhere among equal ones, it differs between two neighbours.
    order = np.argsort(equal, kind="stable")
    found = np.flatnonzero((equal[order[1:]] == equal[order[:-1]]) & (other[order[1:]] != other[order[:-1]]))
    for place in found.tolist():
        yield Meeting(int(order[place]), int(order[place + 1]), what)

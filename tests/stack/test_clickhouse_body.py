"""Bodies with a Content-Encoding."""

import gzip
import zlib
from collections.abc import Callable

import lz4.frame
import pytest
import zstandard

from pipeline.stack.clickhouse_body import BodyTooLargeError, UnknownEncodingError, inflate

PLAIN = b"row\n" * 100_000
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "lz4": lz4.frame.compress,
    "zstd": zstandard.compress,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
}


@pytest.mark.parametrize("encoding", COMPRESSORS)
def test_body_is_inflated_whole(encoding: str) -> None:
    """Each encoding comes back whole; one byte above the limit is refused."""
    body = COMPRESSORS[encoding](PLAIN)
    assert inflate(body, encoding, len(PLAIN)) == PLAIN
    with pytest.raises(BodyTooLargeError):
        inflate(body, encoding, len(PLAIN) - 1)


@pytest.mark.parametrize("encoding", ["lz4", "zstd", "gzip"])
def test_all_frames_of_a_body_are_read(encoding: str) -> None:
    """Frames one after the other are one body: no row of a later frame is lost."""
    compress = COMPRESSORS[encoding]
    assert inflate(compress(b"one\n") + compress(b"two\n"), encoding, 100) == b"one\ntwo\n"


@pytest.mark.parametrize("encoding", COMPRESSORS)
def test_cut_body_is_refused(encoding: str) -> None:
    """A body cut short is an error, never a part of the rows."""
    with pytest.raises(UnknownEncodingError):
        inflate(COMPRESSORS[encoding](PLAIN)[:-5], encoding, len(PLAIN))


def test_unknown_encoding_is_named() -> None:
    """What we cannot read is refused by name."""
    with pytest.raises(UnknownEncodingError, match="br"):
        inflate(b"x", "br", 10)

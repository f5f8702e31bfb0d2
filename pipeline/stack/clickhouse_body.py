"""Request bodies of ClickHouse's HTTP interface: Content-Encoding, with a limit after inflation."""

import io
import zlib
from typing import Protocol

import lz4.frame
import zstandard

READ_BYTES = 1 << 20


class BodyTooLargeError(ValueError):
    """The body exceeds the limit once inflated."""


class UnknownEncodingError(ValueError):
    """The Content-Encoding is none of ours, or the body is not of it."""


class Reader(Protocol):
    """What gives inflated bytes piece by piece."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes; empty at the end."""
        ...


def inflate(body: bytes, encoding: str, bytes_max: int) -> bytes:
    """Inflate a whole body.

    All frames of it: clickhouse-connect sends several lz4 frames one after the other, and
    rows would vanish silently if only the first were read.

    Raises:
        BodyTooLargeError: more than `bytes_max` bytes come out.
        UnknownEncodingError: an encoding other than lz4, zstd, gzip, deflate, or a broken body.
    """
    try:
        reader = _open(body, encoding)
        inflated = bytearray()
        while part := reader.read(READ_BYTES):
            inflated += part
            if len(inflated) > bytes_max:
                raise BodyTooLargeError(f"over {bytes_max} bytes after inflation")
    except (RuntimeError, EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        raise UnknownEncodingError(f"The body is no {encoding}: {error}") from error
    return bytes(inflated)


def _open(body: bytes, encoding: str) -> Reader:
    match encoding:
        case "lz4":
            return lz4.frame.LZ4FrameFile(io.BytesIO(body))  # type: ignore[no-any-return]
        case "zstd":
            return _Zstd(body)
        case "gzip":
            import gzip

            return gzip.GzipFile(fileobj=io.BytesIO(body))
        case "deflate":
            return _Inflated(body)
    raise UnknownEncodingError(f"Unknown compression method {encoding}")


class _Zstd:
    """Zstandard frames as a file. The package's own reader takes a body that was cut short for a whole one."""

    # What 1 KiB can become is 32 MiB: 256 blocks of one repeated byte, 128 KiB each. That is
    # how far a hostile body may pass the limit.
    _PIECE_BYTES = 1024

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._position = 0
        self._frame: zstandard.ZstdDecompressionObj | None = None

    def read(self, _size: int = -1, /) -> bytes:
        """The next piece, of any size."""
        while self._position < len(self._body):
            frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            piece = self._body[self._position : self._position + self._PIECE_BYTES]
            part = frame.decompress(piece)
            self._position += len(piece) - len(frame.unused_data)
            self._frame = None if frame.eof else frame
            if part:
                return part
        if self._frame is not None:
            raise EOFError("cut short")
        return b""


class _Inflated:
    """A zlib stream as a file; the standard library has none."""

    def __init__(self, body: bytes) -> None:
        self._inflater = zlib.decompressobj()
        self._rest = body

    def read(self, size: int = -1, /) -> bytes:
        part = self._inflater.decompress(self._rest, max(size, 0))
        self._rest = self._inflater.unconsumed_tail
        if not part and not self._inflater.eof:
            raise EOFError("cut short")
        return part

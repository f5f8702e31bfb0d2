"""Bodies: what is refused from the head, what comes out of compressed ones, and what is held meanwhile."""

import asyncio
import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterable

import pytest

from tests.gateway.front import BODY, front

LIMIT = 64 * 1024
JSON_BYTES = json.dumps(BODY).encode()
BINARY_JSON = json.dumps(
    {
        "model_name": "digits",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}],
    }
).encode()
BINARY = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(BINARY_JSON))}


def raw_deflate(body: bytes) -> bytes:
    """The stream without zlib's head and checksum, as some clients call deflate."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


def packed(body: bytes, encoding: str) -> bytes:
    """A body in an encoding, made quickly."""
    match encoding:
        case "gzip":
            return gzip.compress(body, 1)
        case "deflate":
            return zlib.compress(body, 1)
    return body


async def pieces(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    """A body without a known length."""
    for part in parts:
        yield part


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"', "", None],
)
async def test_json_is_taken_as_it_is(content_type: str | None) -> None:
    """The bytes that were sent are the bytes that are handed on, with no header beside them."""
    async with front() as gateway:
        headers = {} if content_type is None else {"content-type": content_type}
        response = await gateway.http.post("/v1/inferences", content=JSON_BYTES, headers=headers)
    assert response.status_code == 202
    [submission] = gateway.inferences.submissions
    assert (submission.value, list(submission.headers)) == (JSON_BYTES, [])


@pytest.mark.parametrize("content_type", ["application/octet-stream", "application/json"])
async def test_binary_form_keeps_its_header(content_type: str) -> None:
    """The header alone marks the form, whatever the type is called, and travels with the record."""
    async with front() as gateway:
        headers = {**BINARY, "content-type": content_type}
        response = await gateway.http.post("/v1/inferences", content=BINARY_JSON + b"\0" * 4, headers=headers)
    assert response.status_code == 202
    [submission] = gateway.inferences.submissions
    assert submission.value == BINARY_JSON + b"\0" * 4
    assert list(submission.headers) == [("Inference-Header-Content-Length", b"%d" % len(BINARY_JSON))]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"content-type": "text/plain"}, (415, "UNSUPPORTED_MEDIA_TYPE")),
        ({"content-type": "application/x-www-form-urlencoded"}, (415, "UNSUPPORTED_MEDIA_TYPE")),
        ({"content-type": "multipart/form-data; boundary=x"}, (415, "UNSUPPORTED_MEDIA_TYPE")),
        ({"content-type": "application/json; charset=latin-1"}, (415, "UNSUPPORTED_MEDIA_TYPE")),
        ({"content-type": "application/json-seq"}, (415, "UNSUPPORTED_MEDIA_TYPE")),
        ({"content-type": "application/octet-stream"}, (400, "INVALID_REQUEST")),
        ({"inference-header-content-length": "x"}, (400, "INVALID_REQUEST")),
        ({"inference-header-content-length": "-1"}, (400, "INVALID_REQUEST")),
        ({"inference-header-content-length": "9" * 30}, (400, "INVALID_REQUEST")),
        ({"inference-header-content-length": str(len(JSON_BYTES) + 1)}, (400, "INVALID_REQUEST")),
        ({"content-encoding": "br"}, (415, "UNSUPPORTED_MEDIA_TYPE")),
        ({"content-encoding": "gzip, gzip"}, (415, "UNSUPPORTED_MEDIA_TYPE")),
        ({"content-encoding": "gzip"}, (400, "INVALID_REQUEST")),
        ({"content-encoding": "deflate"}, (400, "INVALID_REQUEST")),
    ],
)
async def test_wrong_head_is_told(headers: dict[str, str], expected: tuple[int, str]) -> None:
    """Types, lengths and encodings that are not read here are named, and nothing is handed on."""
    async with front() as gateway:
        given = {"content-type": "application/json"} | headers
        assert await gateway.problem("POST", "/v1/inferences", content=JSON_BYTES, headers=given) == expected
    assert gateway.inferences.submissions == []


async def test_two_different_lengths_are_refused() -> None:
    """Where the JSON ends must not depend on which header a reader takes."""
    async with front() as gateway:
        headers = [("inference-header-content-length", "1"), ("inference-header-content-length", "2")]
        found = await gateway.problem("POST", "/v1/inferences", content=JSON_BYTES, headers=headers)
    assert found == (400, "INVALID_REQUEST")


@pytest.mark.parametrize("body", [b"", b"\xff\xfe{}", b'{"a": "\xc3\x28"}', b'{"a": "\xed\xa0\x80"}'])
async def test_what_is_no_text_is_refused(body: bytes) -> None:
    """Nothing at all, UTF-16, broken UTF-8 and surrogates in it are no JSON."""
    async with front() as gateway:
        found = await gateway.problem("POST", "/v1/inferences", content=body)
    assert found == (400, "INVALID_REQUEST")
    assert gateway.inferences.submissions == []


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(JSON_BYTES)),
        ("x-gzip", gzip.compress(JSON_BYTES)),
        ("GZIP", gzip.compress(JSON_BYTES[:9]) + gzip.compress(JSON_BYTES[9:])),
        ("deflate", zlib.compress(JSON_BYTES)),
        ("deflate", raw_deflate(JSON_BYTES)),
        ("identity", JSON_BYTES),
        ("identity, gzip", gzip.compress(JSON_BYTES)),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 10_000])
async def test_compressed_bodies_are_inflated(encoding: str, body: bytes, step: int) -> None:
    """Gzip with one member or more, and both streams called deflate, however they are cut on the way."""
    async with front() as gateway:
        content = pieces(body[at : at + step] for at in range(0, len(body), step))
        response = await gateway.http.post("/v1/inferences", content=content, headers={"content-encoding": encoding})
    assert response.status_code == 202, response.text
    assert gateway.inferences.submissions[0].value == JSON_BYTES


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(JSON_BYTES)[:-1]),
        ("gzip", gzip.compress(JSON_BYTES)[:-8] + b"\0" * 8),
        ("gzip", gzip.compress(JSON_BYTES) + b"garbage"),
        ("gzip", b""),
        ("deflate", zlib.compress(JSON_BYTES)[:-1]),
        ("deflate", zlib.compress(JSON_BYTES) + zlib.compress(b" ")),
    ],
)
async def test_broken_streams_are_refused(encoding: str, body: bytes) -> None:
    """Cut off, damaged or followed by something: none of it is taken for the whole body."""
    async with front() as gateway:
        found = await gateway.problem("POST", "/v1/inferences", content=body, headers={"content-encoding": encoding})
    assert found == (400, "INVALID_REQUEST")
    assert gateway.inferences.submissions == []


async def test_many_empty_gzip_members_are_refused() -> None:
    """A body of members that hold nothing costs 64 of them, not a second of this process."""
    async with front() as gateway:
        body = gzip.compress(b"") * 1000 + gzip.compress(JSON_BYTES)
        found = await gateway.problem("POST", "/v1/inferences", content=body, headers={"content-encoding": "gzip"})
    assert found == (400, "INVALID_REQUEST")


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT])
async def test_body_up_to_the_limit_is_read(size: int) -> None:
    """The limit itself is allowed."""
    async with front(record_bytes=LIMIT) as gateway:
        response = await gateway.http.post("/v1/inferences", content=JSON_BYTES.ljust(size))
    assert response.status_code == 202


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate"])
@pytest.mark.parametrize("declared", [True, False])
async def test_body_over_the_limit_is_refused(encoding: str, *, declared: bool) -> None:
    """Said beforehand, found while reading or while inflating: 413, and nothing is held any more."""
    body = packed(JSON_BYTES.ljust(LIMIT + 1), encoding)
    async with front(record_bytes=LIMIT) as gateway:
        content = body if declared else pieces([body])
        found = await gateway.problem("POST", "/v1/inferences", content=content, headers={"content-encoding": encoding})
    assert found == (413, "PAYLOAD_TOO_LARGE")
    assert (gateway.limits.held_bytes, gateway.limits.in_flight) == (0, 0)


async def test_declared_length_is_refused_unread() -> None:
    """Content-Length over the limit is answered before a byte of the body is asked for."""

    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    async with front(record_bytes=LIMIT) as gateway:
        headers = {"content-length": str(LIMIT + 1)}
        found = await gateway.problem("POST", "/v1/inferences", content=never(), headers=headers)
    assert found == (413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_bomb_costs_no_more_than_the_limit(encoding: str) -> None:
    """64 MiB of zeros in 64 KiB: what comes out is looked at piece by piece."""
    bomb = packed(bytes(64 << 20), encoding)
    async with front(record_bytes=1 << 20) as gateway:
        tracemalloc.start()
        found = await gateway.problem("POST", "/v1/inferences", content=bomb, headers={"content-encoding": encoding})
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert found == (413, "PAYLOAD_TOO_LARGE")
    assert peak < 8 << 20


async def test_slow_body_is_given_up() -> None:
    """A body that takes longer than its time is answered with 408."""

    async def dawdling() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with front(body_timeout_s=0.05) as gateway:
        found = await gateway.problem("POST", "/v1/inferences", content=dawdling())
    assert found == (408, "REQUEST_TIMEOUT")
    assert gateway.limits.in_flight == 0


async def test_bytes_in_flight_are_bounded() -> None:
    """What finds no room is refused at once with 429, and the room is there again when others are done."""
    go_on, reading = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield JSON_BYTES.ljust(1000)
        reading.set()
        await go_on.wait()

    async with front(max_in_flight_bytes=1500) as gateway:
        first = asyncio.create_task(gateway.http.post("/v1/inferences", content=slow()))
        await reading.wait()
        response = await gateway.http.post("/v1/inferences", content=JSON_BYTES.ljust(1000))
        assert response.status_code == 429
        assert response.json()["code"] == "OVERLOADED"
        assert int(response.headers["retry-after"]) >= 1
        go_on.set()
        assert (await first).status_code == 202
        assert (await gateway.http.post("/v1/inferences", content=JSON_BYTES.ljust(1000))).status_code == 202
    assert gateway.limits.held_bytes == 0

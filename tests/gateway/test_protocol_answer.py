"""Result records become answers of the Open Inference Protocol: bytes copied, errors told, the cache in headers."""

import gzip
import json
import zlib

import pytest

from pipeline.core.stored_result import StoredResult
from pipeline.gateway.http.problem import Problem
from pipeline.gateway.protocol.answer import accepted_encoding, answer_of, compressed
from schemas.errors import ErrorCode

OUTPUTS = b'[{"name":"y","datatype":"FP32","shape":[2],"data":[1.50,1e-7]}]'
TIMES = b'"requested_at":"2026-11-22T22:00:00Z","completed_at":"2026-11-22T22:00:00Z"'
LENGTH = "Inference-Header-Content-Length"


def record(cache: bytes = b"", outputs: bytes = OUTPUTS) -> bytes:
    """A result that succeeded."""
    return b'{"id":"a","model_name":"m","model_version":"2","status":"succeeded","outputs":%b,"parameters":{%b},%b}' % (
        outputs, cache, TIMES,
    )  # fmt: skip


def failure(code: str, cache: bytes = b"") -> bytes:
    """A result that failed."""
    return b'{"id":"a","model_name":"m","status":"failed","error":{"code":"%b","message":"why","retryable":false},' % (
        code.encode()
    ) + b'"parameters":{%b},%b}' % (cache, TIMES)


def stored(value: bytes, json_bytes: int = 0) -> StoredResult:
    """A record as the store has it."""
    return StoredResult(b"d" * 16, json_bytes, value)


def test_answer_has_the_protocols_members_alone() -> None:
    """Id, model, version, parameters and outputs; times and status are the record's, not the protocol's."""
    answer = answer_of(stored(record(b'"cache_status":"miss","queue_ms":1.5')))
    assert json.loads(answer.body) == {
        "model_name": "m",
        "model_version": "2",
        "id": "a",
        "parameters": {"cache_status": "miss", "queue_ms": 1.5},
        "outputs": json.loads(OUTPUTS),
    }
    assert answer.headers["Content-Type"] == "application/json"
    assert LENGTH not in answer.headers


def test_outputs_text_is_copied() -> None:
    """Numbers are the worker's own digits: 1.50 stays 1.50."""
    assert answer_of(stored(record())).body.endswith(b'"outputs":%b}' % OUTPUTS)


@pytest.mark.parametrize("raw", [b"", bytes(range(256)), b'}{"'])
def test_raw_outputs_follow_the_new_json(raw: bytes) -> None:
    """Raw tensors stand behind the JSON untouched, and the header states where they begin; an empty one has it too."""
    head = record(outputs=b'[{"name":"y","parameters":{"binary_data_size":%d}}]' % len(raw))
    answer = answer_of(stored(head + raw, len(head)))
    length = int(answer.headers[LENGTH])
    assert json.loads(answer.body[:length])["id"] == "a"
    assert answer.body[length:] == raw
    assert answer.headers["Content-Type"] == "application/octet-stream"


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_its_status(code: ErrorCode) -> None:
    """A failed result is an error with the status of its code and its own sentence."""
    with pytest.raises(Problem) as caught:
        answer_of(stored(failure(code)))
    assert (caught.value.status, caught.value.code, caught.value.detail) == (code.http_status, code, "why")
    assert ("retry-after" in caught.value.headers) == code.retryable


def test_unknown_code_is_an_error_of_ours() -> None:
    """A code of a newer worker is 500, and named."""
    with pytest.raises(Problem, match="BRAND_NEW: why") as caught:
        answer_of(stored(failure("BRAND_NEW")))
    assert caught.value.status == 500


@pytest.mark.parametrize("value", [b"", b"{}", b"[]", b'{"id":"a"', b"\xff"])
def test_what_is_no_result_is_an_error_of_ours(value: bytes) -> None:
    """A record that cannot be read is 500, not an empty answer."""
    with pytest.raises(Problem, match="cannot be read") as caught:
        answer_of(stored(value))
    assert caught.value.status == 500


@pytest.mark.parametrize(
    ("status", "may_store", "text"),
    [
        ("hit", True, "pipeline; hit"),
        ("miss", True, "pipeline; fwd=miss; stored"),
        ("miss", False, "pipeline; fwd=miss"),
        ("coalesced", True, "pipeline; fwd=miss; collapsed"),
        ("refresh", True, "pipeline; fwd=request; stored"),
        ("refresh", False, "pipeline; fwd=request"),
        ("bypass", True, "pipeline; fwd=bypass"),
    ],
)
def test_cache_status_is_told(status: str, may_store: bool, text: str) -> None:
    """RFC 9211, by what the worker says; nothing that was forbidden to be stored is said to be."""
    answer = answer_of(stored(record(b'"cache_status":"%b"' % status.encode())), may_store=may_store)
    assert answer.headers["Cache-Status"] == text


def test_age_is_a_hits_alone() -> None:
    """A hit's age is told in whole seconds; nothing else has one, and an answer that met no cache has neither."""
    assert answer_of(stored(record(b'"cache_status":"hit","cache_age_ms":2812'))).headers["Age"] == "2"
    assert "Age" not in answer_of(stored(record(b'"cache_status":"miss"'))).headers
    assert "Cache-Status" not in answer_of(stored(record())).headers


def test_failed_answer_is_not_called_stored() -> None:
    """What the cache did is told of an error, too, and errors are never stored."""
    with pytest.raises(Problem) as caught:
        answer_of(stored(failure("MODEL_ERROR", b'"cache_status":"miss"')))
    assert caught.value.headers["Cache-Status"] == "pipeline; fwd=miss"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, None),
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("deflate;q=1, gzip;q=0.5", "deflate"),
        ("gzip;q=0, deflate;q=0", None),
        ("br, zstd", None),
        ("GZIP", "gzip"),
        ("gzip;q=nan, deflate;q=-1", None),
        ("*", None),
        (";;,=,", None),
    ],
)
def test_encoding_is_what_the_client_likes_best(accept: str | None, chosen: str | None) -> None:
    """Of gzip and deflate the one with the higher weight; none that is refused, none that cannot be read."""
    assert accepted_encoding(accept) == chosen


def test_compressed_bodies_inflate_to_themselves() -> None:
    """Deflate is zlib's format, which is what `tritonclient` inflates."""
    body = record() * 50
    assert gzip.decompress(compressed(body, "gzip")) == body
    assert zlib.decompress(compressed(body, "deflate")) == body

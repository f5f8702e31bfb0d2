"""The client over HTTP, on a real socket: what the gateway's answers become, and what is tried again."""

import asyncio
import socket
from collections.abc import AsyncIterator

import numpy as np
import pytest

from pipeline.client import GatewayRefused, GatewayUnavailable, HttpClient, IdReused, ResultGone, ResultNotReceived
from pipeline.client.pending import ResultRecord
from pipeline.errors import InferenceFailed, PipelineError, SettingsError
from schemas.decoded import DecodedRequest
from schemas.errors import ErrorCode
from schemas.request import decode_request
from tests.client.scripted_gateway import (
    BINARY_HEADER,
    Fault,
    ScriptedGateway,
    answers_with,
    hangs,
    is_cut,
    is_cut_after_acceptance,
    never,
    says,
)
from tests.client.scripted_topics import failed_record, result_record

PIXELS = np.zeros((1, 64), np.float32)
LARGE = np.arange(1024, dtype=np.float32).reshape(1, -1)


@pytest.fixture
async def gateway() -> AsyncIterator[ScriptedGateway]:
    """A gateway that answers everything with a small success."""
    async with ScriptedGateway() as gateway:
        yield gateway


@pytest.fixture
async def silent() -> AsyncIterator[ScriptedGateway]:
    """A gateway that accepts everything and has no answers."""
    async with ScriptedGateway(never) as gateway:
        yield gateway


async def test_infer_is_one_exchange(gateway: ScriptedGateway) -> None:
    """An answer that comes while the gateway waits takes one POST and no second look."""
    async with HttpClient(gateway.url) as client:
        result = await client.infer("digits", {"image": PIXELS}, id="mine")
    assert (result.id, result.as_numpy("label").tolist()) == ("mine", [[7]])
    assert (len(gateway.posts), gateway.gets) == (1, [])
    assert gateway.posts[0][1]["Prefer"] == "wait=50"


async def test_submit_is_receipted_and_awaited(gateway: ScriptedGateway) -> None:
    """`submit` returns with the receipt, without waiting; awaiting it is its result, the same bytes each time."""
    async with HttpClient(gateway.url) as client:
        submitted = await client.submit("digits", {"image": PIXELS}, id="mine")
        assert submitted.receipt == {"id": "mine", "location": "/v1/inferences/mine"}
        assert (await submitted).id == "mine"
        assert (await submitted.record()).value == result_record("mine", 0).value
    assert "Prefer" not in gateway.posts[0][1]
    assert len(gateway.gets) == 1


async def test_large_tensors_travel_as_bytes() -> None:
    """Above 1 kB the body is JSON and raw bytes, both ways, bit for bit."""

    def echo(request: DecodedRequest) -> ResultRecord:
        member = {"name": "y", "datatype": "FP32", "shape": [1, 1024], "parameters": {"binary_data_size": 4096}}
        record = result_record(str(request.id), 0, outputs=[member])
        headers = [*record.headers, (BINARY_HEADER, b"%d" % len(record.value))]
        return record._replace(value=record.value + request.inputs[0].to_tensor().raw, headers=headers)

    async with ScriptedGateway(echo) as gateway, HttpClient(gateway.url) as client:
        result = await client.infer("echo", {"x": LARGE})
    ((body, headers),) = gateway.posts
    assert headers["Content-Type"] == "application/octet-stream"
    assert int(headers[BINARY_HEADER]) < len(body) - LARGE.nbytes + 1
    np.testing.assert_array_equal(result.as_numpy("y"), LARGE)


async def test_several_megabytes_are_sent(gateway: ScriptedGateway) -> None:
    """A body of several MiB arrives whole."""
    large = np.zeros((1, 1 << 20), np.float32)
    async with HttpClient(gateway.url) as client:
        await client.infer("echo", {"x": large})
    assert len(gateway.posts[0][0]) > large.nbytes


async def test_options_travel_in_the_body(gateway: ScriptedGateway) -> None:
    """Version, switches, deadline and callback are the record's members, as over Kafka; the key is a header."""
    async with HttpClient(gateway.url, api_key="secret") as client:
        await client.infer(
            "digits", {"image": PIXELS}, model_version=2, enable_cache=False, timeout_s=1.5, callback="https://a.b/c"
        )
    ((body, headers),) = gateway.posts
    request = decode_request(body)
    assert request.callback is not None
    assert (request.model_version, request.enable_cache, request.timeout_ms, request.callback.url) == (
        "2", False, 1500, "https://a.b/c",
    )  # fmt: skip
    assert headers["Authorization"] == "Bearer secret"


async def test_failed_answer_raises_its_code() -> None:
    """A result that failed is raised with its code, as over Kafka."""
    gateway = ScriptedGateway(lambda request: failed_record(str(request.id), 0, "MODEL_ERROR"))
    async with gateway, HttpClient(gateway.url) as client:
        with pytest.raises(InferenceFailed) as raised:
            await client.infer("digits", {"image": PIXELS}, id="r-1")
    assert (raised.value.code, raised.value.request_id) == (ErrorCode.MODEL_ERROR, "r-1")


@pytest.mark.parametrize(
    ("fault", "error", "sentence"),
    [
        (says(400, "INVALID_INPUT"), InferenceFailed, "INVALID_INPUT: as the script says"),
        (says(413, "PAYLOAD_TOO_LARGE"), InferenceFailed, "PAYLOAD_TOO_LARGE"),
        (answers_with("<h1>too large</h1>", 413), InferenceFailed, "PAYLOAD_TOO_LARGE: <h1>too large</h1>"),
        (says(422, "ID_REUSED"), IdReused, "r-1 belongs to a request with another content"),
        (says(401, "UNAUTHORIZED"), GatewayRefused, "HTTP 401 UNAUTHORIZED: as the script says"),
        (says(404), GatewayRefused, "HTTP 404: as the script says"),
        (says(302, headers={"Location": "/elsewhere"}), GatewayRefused, "HTTP 302"),
        (answers_with("<h1>Welcome to the hotel</h1>"), GatewayRefused, "no result record"),
        (answers_with("<h1>Welcome to the hotel</h1>", 202), GatewayRefused, "no receipt of a gateway"),
        (answers_with('{"id": "other"}', 202), GatewayRefused, "the receipt of r-1 is for 'other'"),
        (answers_with("[" * 100_000, 400), GatewayRefused, "HTTP 400"),
    ],
)
async def test_refusals_are_typed_and_final(
    gateway: ScriptedGateway, fault: Fault, error: type[PipelineError], sentence: str
) -> None:
    """What a repetition cannot help is raised at once, by its code where it has one of the wire."""
    gateway.faults.append(fault)
    async with HttpClient(gateway.url) as client:
        with pytest.raises(error) as raised:
            await client.infer("digits", {"image": PIXELS}, id="r-1")
    assert sentence in str(raised.value)
    assert len(gateway.posts) == 1


@pytest.mark.parametrize(
    "fault",
    [
        says(429, "OVERLOADED", {"Retry-After": "0"}),
        says(503, "INFERENCE_UNAVAILABLE"),
        says(500),
        answers_with("<h1>Bad gateway</h1>", 502),
        is_cut,
        is_cut_after_acceptance,
    ],
)
async def test_what_may_pass_is_tried_again_with_the_same_bytes(gateway: ScriptedGateway, fault: Fault) -> None:
    """A busy gateway and a cut connection cost a repetition under the same id, never a second inference."""
    gateway.faults.append(fault)
    async with HttpClient(gateway.url) as client:
        result = await client.infer("digits", {"image": PIXELS})
    first, second = (body for body, _ in gateway.posts)
    assert first == second
    assert gateway.inferences == [result.id]


async def test_receipt_survives_a_cut_connection(silent: ScriptedGateway) -> None:
    """A request whose receipt was cut off is asked for again, and taken in once."""
    silent.faults.append(is_cut_after_acceptance)
    async with HttpClient(silent.url) as client:
        submitted = await client.submit("digits", {"image": PIXELS})
    assert (silent.inferences, len(silent.posts)) == ([submitted.id], 2)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (says(429, "OVERLOADED", {"Retry-After": "100"}), InferenceFailed),
        (says(429, headers={"Retry-After": "Fri, 31 Dec 2199 23:59:59 GMT"}), InferenceFailed),
        (says(503, headers={"Retry-After": "100"}), GatewayUnavailable),
    ],
)
async def test_later_than_the_deadline_is_told_at_once(
    gateway: ScriptedGateway, fault: Fault, error: type[PipelineError]
) -> None:
    """A gateway that wants to be asked after the caller's deadline is not waited for."""
    gateway.faults.append(fault)
    async with HttpClient(gateway.url) as client:
        with pytest.raises(error):
            await client.infer("digits", {"image": PIXELS}, timeout_s=30)
    assert len(gateway.posts) == 1


async def test_hanging_attempt_is_given_up(gateway: ScriptedGateway) -> None:
    """A connection on which nothing comes is left for another, long before the deadline."""
    gateway.faults.append(hangs)
    async with HttpClient(gateway.url, attempt_timeout_s=0.1) as client:
        submitted = await client.submit("digits", {"image": PIXELS})
    assert (len(gateway.posts), gateway.inferences) == (2, [submitted.id])


async def test_restarted_gateway_is_waited_for(silent: ScriptedGateway) -> None:
    """A gateway that goes and comes back while an answer is waited for is asked again."""
    async with HttpClient(silent.url) as client:
        submitted = await client.submit("digits", {"image": PIXELS})
        waiting = asyncio.create_task(submitted.result())
        await silent.is_waited_on.wait()
        await silent.stop()
        silent.answer(result_record(submitted.id, 0))
        await silent.start()
        assert (await waiting).id == submitted.id


async def test_unknown_id_is_waited_for(gateway: ScriptedGateway) -> None:
    """A gateway that lost its store says 404 of what it accepted; the answer is asked for again."""
    gateway.faults.extend([lambda request, accept: accept(), says(404, "NOT_FOUND")])
    async with HttpClient(gateway.url) as client:
        submitted = await client.submit("digits", {"image": PIXELS})
        assert (await submitted.result()).id == submitted.id
    assert len(gateway.gets) == 2


async def test_gone_result_is_typed(gateway: ScriptedGateway) -> None:
    """An answer that is no longer kept is told as such, and not waited for."""
    gateway.faults.extend([lambda request, accept: accept(), says(410, "RESULT_GONE")])
    async with HttpClient(gateway.url) as client:
        submitted = await client.submit("digits", {"image": PIXELS})
        with pytest.raises(ResultGone, match=submitted.id):
            await submitted.result()
    assert len(gateway.gets) == 1


async def test_missing_answer_ends_in_a_typed_error(silent: ScriptedGateway) -> None:
    """A wait without an answer ends at its limit; a second wait finds a late one."""
    async with HttpClient(silent.url) as client:
        submitted = await client.submit("digits", {"image": PIXELS})
        with pytest.raises(ResultNotReceived):
            await submitted.result(timeout_s=0.05)
        silent.answer(result_record(submitted.id, 0))
        assert (await submitted.result(timeout_s=5)).id == submitted.id


async def test_infer_waits_on_after_a_short_poll(silent: ScriptedGateway) -> None:
    """A gateway that gives up waiting at once is asked for the result until it is there."""
    silent.faults.extend([says(503, headers={"Retry-After": "0"})])
    async with HttpClient(silent.url, answer_timeout_s=1.9) as client:
        asking = asyncio.create_task(client.infer("digits", {"image": PIXELS}, id="late"))
        await silent.is_waited_on.wait()
        silent.answer(result_record("late", 0))
        assert (await asking).id == "late"


async def test_absent_gateway_is_told_at_once() -> None:
    """Where nothing listens connecting fails with the address, and nothing is left open."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(GatewayUnavailable, match=url):
            async with HttpClient(url):
                pass


async def test_close_ends_every_wait(silent: ScriptedGateway) -> None:
    """Closing the client tells whoever still waits."""
    async with HttpClient(silent.url) as client:
        submitted = await client.submit("digits", {"image": PIXELS})
        waiting = asyncio.create_task(submitted.result())
        await silent.is_waited_on.wait()
    with pytest.raises(GatewayUnavailable):
        await waiting
    with pytest.raises(GatewayUnavailable, match="async with"):
        await client.submit("digits", {"image": PIXELS})


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8080", "ftp://a", "http://", "http://a:b:c", "http://a/?b=c", "http://a:0", "http://[::1", ""]
)
def test_url_that_is_none_is_named(url: str) -> None:
    """A wrong address is told with its value and what was expected."""
    with pytest.raises(SettingsError, match=r"url is .*http://127\.0\.0\.1:8080"):
        HttpClient(url)


@pytest.mark.parametrize("api_key", ["", "a\r\nHost: b", "pässword", " a"])
def test_key_that_is_none_is_not_shown(api_key: str) -> None:
    """A key that no header can carry is refused, and never printed."""
    with pytest.raises(SettingsError) as raised:
        HttpClient("http://127.0.0.1:8080", api_key=api_key)
    assert not api_key or api_key not in str(raised.value)

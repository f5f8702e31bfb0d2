"""The gateway over real sockets, spoken to in raw bytes: what no client library would send."""

import asyncio
import contextlib
import gzip
import json
import socket

import pytest

from pipeline.config import GatewaySettings
from pipeline.core.stored_result import StoredResult
from pipeline.gateway.main import bound_socket
from tests.gateway.fake_inferences import a_result
from tests.gateway.front import BODY, until
from tests.gateway.raw_http import PLACE, get, post, served

JSON_BYTES = json.dumps(BODY).encode()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50, 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nhost: a\r\n\r\n", 505),
        (b"GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx : y\r\n\r\n", 400),
        (post(b"{}", length=-5), 400),
        (post(b"{}", b"content-length: 7"), 400),
        (post(b"{}", length=10**30), 400),
        (post(b"{}", b"transfer-encoding: gzip"), 501),
        (post(b"", b"transfer-encoding: chunked"), 400),
    ],
)
async def test_what_is_no_http_is_told_and_closed(sent: bytes, status: int) -> None:
    """Broken requests, ambiguous lengths and other protocols: a problem, then the end of the connection."""
    async with served() as gateway, gateway.line() as line:
        line.send(sent)
        answer = await line.answer()
        assert (answer.status, answer.code) == (status, "INVALID_REQUEST")
        assert answer.headers["connection"] == "close"
        assert await line.is_closed()


@pytest.mark.parametrize("count", [101, 10_000])
async def test_too_many_headers_are_refused(count: int) -> None:
    """100 headers, in 64 KiB: 431 beyond, whether they come in one piece or not."""
    async with served() as gateway:
        answer = await gateway.ask(get(b"/status", *(b"a:b" for _ in range(count))))
        assert (answer.status, answer.code) == (431, "HEADERS_TOO_LARGE")
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("where", ["header", "target", "endless"])
async def test_too_large_a_head_is_refused(where: str) -> None:
    """64 KiB of head: 431 beyond, also for one that never ends."""
    huge = b"x" * 70_000
    sent = {
        "header": get(b"/status", b"cookie: " + huge),
        "target": get(b"/v1/inferences/" + huge),
        "endless": b"GET / HTTP/1.1\r\nhost: a\r\nx: " + huge * 4,
    }[where]
    async with served() as gateway:
        answer = await gateway.ask(sent)
    assert (answer.status, answer.code) == (431, "HEADERS_TOO_LARGE")


async def test_hundred_headers_are_read() -> None:
    """The limit itself is allowed."""
    async with served() as gateway:
        answer = await gateway.ask(get(b"/health/live", *(b"a: b" for _ in range(99))))
    assert answer.status == 200


async def test_pipelined_requests_are_answered_in_order() -> None:
    """Requests that come before their turn wait for it, on the same connection."""
    async with served() as gateway, gateway.line() as line:
        gateway.inferences.answer("r-1", a_result("r-1"))
        line.send(get(PLACE + b"/r-1"), post(JSON_BYTES), get(PLACE + b"/nobody"), get(b"/health/live"))
        statuses = [(await line.answer()).status for _ in range(4)]
    assert statuses == [200, 202, 404, 200]


async def test_garbage_behind_a_request_does_not_reach_its_answer() -> None:
    """The request is answered, or the connection ends; nothing is mixed into an answer."""
    async with served() as gateway, gateway.line() as line:
        line.send(get(b"/health/live"), b"\0\0garbage\r\n\r\n")
        answer = await line.answer()
        assert answer.status in {200, 400}
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            assert (await line.answer()).status == 400
        assert await line.is_closed()


async def test_connection_is_kept() -> None:
    """One connection carries requests one after the other, errors among them."""
    async with served() as gateway, gateway.line() as line:
        for _ in range(3):
            line.send(post(JSON_BYTES))
            assert (await line.answer()).status == 202
            line.send(post(b"{"))
            assert (await line.answer()).status == 400
        assert gateway.connections.open == 1


async def test_head_and_options_have_no_body() -> None:
    """HEAD has the length of what GET has, and the next answer follows at once."""
    async with served() as gateway, gateway.line() as line:
        line.send(get(b"/health/live", method=b"HEAD"))
        head = await line.answer(head_only=True)
        line.send(get(PLACE, method=b"OPTIONS"))
        options = await line.answer()
        line.send(get(b"/health/live"))
        got = await line.answer()
    assert (head.status, head.headers["content-length"]) == (200, got.headers["content-length"])
    assert (options.status, options.headers["allow"]) == (204, "OPTIONS, POST")
    assert got.body == b'{"live":true}'


@pytest.mark.parametrize(
    "path",
    [b"/v1/inferences/../../etc/passwd", b"/v1/inferences/%2e%2e%2fstatus", b"/%ff%fe", b"*", b"/v1//inferences"],
)
async def test_path_tricks_lead_nowhere(path: bytes) -> None:
    """What is no route is 404, however it is written."""
    async with served() as gateway:
        answer = await gateway.ask(get(path))
        assert (answer.status, answer.code) == (404, "NOT_FOUND")
        assert gateway.inferences.looks == []


async def test_absolute_target_is_its_path() -> None:
    """RFC 9112: a target with scheme and host, as proxies send them, is the path behind it."""
    async with served() as gateway:
        assert (await gateway.ask(get(b"http://gw/health/live"))).status == 200
        assert (await gateway.ask(get(b"http://gw/nothing"))).status == 404


async def test_upgrades_are_not_taken() -> None:
    """An offer to speak another protocol is passed over."""
    async with served() as gateway:
        answer = await gateway.ask(get(b"/health/live", b"connection: upgrade", b"upgrade: websocket"))
    assert answer.status == 200


async def test_body_length_is_refused_before_it_is_sent() -> None:
    """A client that asks first (Expect) is told 413, and sends nothing."""
    async with served() as gateway, gateway.line() as line:
        line.send(post(b"", b"expect: 100-continue", length=10_000_000))
        answer = await line.answer()
        assert (answer.status, answer.code) == (413, "PAYLOAD_TOO_LARGE")


async def test_body_is_asked_for_where_it_fits() -> None:
    """A client that asks first is told to go on."""
    async with served() as gateway, gateway.line() as line:
        line.send(post(b"", b"expect: 100-continue", length=len(JSON_BYTES)))
        assert (await line.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        line.send(JSON_BYTES)
        assert (await line.answer()).status == 202


async def test_client_that_sends_on_sees_its_refusal() -> None:
    """After a 413 the rest is dropped for a while: the end of the connection is an end, not a reset."""
    async with served() as gateway, gateway.line() as line:
        line.send(post(b"", length=1_000_000))
        answer = await line.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert gateway.limits.in_flight == 0
        for _ in range(10):
            line.send(b" " * 100_000)
            await line.writer.drain()
        assert await line.reader.read() == b""


async def test_refused_body_is_not_taken_for_requests() -> None:
    """What follows a refusal on its connection, however much it looks like requests, is no next request."""
    async with served() as gateway, gateway.line() as line:
        line.send(post(b"", length=1_000_000), get(b"/v1/inferences/r-1") * 100)
        assert (await line.answer()).status == 413
        line.writer.close()
        await until(lambda: not gateway.connections.open)
        assert gateway.inferences.looks == []


async def test_endless_chunks_are_cut() -> None:
    """A body without a length is read up to the limit."""
    async with served() as gateway, gateway.line() as line:
        line.send(post(b"", b"transfer-encoding: chunked").replace(b"content-length: 0\r\n", b""))
        line.send((b"4000\r\n" + b" " * 0x4000 + b"\r\n") * 8)
        answer = await line.answer()
        assert (answer.status, answer.code) == (413, "PAYLOAD_TOO_LARGE")


async def test_broken_chunk_ends_the_connection() -> None:
    """A length that is none within a body: 400, and the request is not sent on."""
    async with served() as gateway, gateway.line() as line:
        line.send(post(b"", b"transfer-encoding: chunked").replace(b"content-length: 0\r\n", b""))
        line.send(b"zz\r\n{}\r\n0\r\n\r\n")
        answer = await line.answer()
        assert (answer.status, answer.code) == (400, "INVALID_REQUEST")
        assert await line.is_closed()
        await until(lambda: not gateway.limits.in_flight)
        assert gateway.inferences.submissions == []


async def test_slow_body_is_given_up() -> None:
    """A byte now and then is no body: 408, and the connection is closed."""
    async with served(body_timeout_s=0.1) as gateway, gateway.line() as line:
        line.send(post(b"{", length=100))
        answer = await line.answer()
        assert (answer.status, answer.code) == (408, "REQUEST_TIMEOUT")
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nhost: a\r\nx: "])
async def test_slow_head_is_given_up(sent: bytes) -> None:
    """A connection without a whole head is closed when its time is up."""
    async with served(head_s=0.1) as gateway, gateway.line() as line:
        line.send(sent)
        assert await line.is_closed()
        await until(lambda: not gateway.connections.open)


async def test_slow_second_head_is_given_up() -> None:
    """Likewise on a connection that was of use before; one that is only kept is not touched."""
    async with served(head_s=0.1) as gateway, gateway.line() as line, gateway.line() as kept:
        for one in (line, kept):
            one.send(get(b"/health/live"))
            assert (await one.answer()).status == 200
        line.send(b"GET")
        assert await line.is_closed()
        kept.send(get(b"/health/live"))
        assert (await kept.answer()).status == 200


async def test_connections_are_bounded() -> None:
    """One too many is closed, and those that are there go on."""
    async with served(connections_max=2) as gateway, gateway.line() as first, gateway.line() as second:
        for line in (first, second):
            line.send(get(b"/health/live"))
            assert (await line.answer()).status == 200
        async with gateway.line() as third:
            assert await third.is_closed()
        first.send(get(b"/health/live"))
        assert (await first.answer()).status == 200


async def test_client_gone_during_its_body_leaves_nothing() -> None:
    """Half a body and an end: nothing is sent on, no place and no byte is taken."""
    async with served() as gateway:
        async with gateway.line() as line:
            line.send(post(JSON_BYTES[:20], length=len(JSON_BYTES)))
            await until(lambda: gateway.limits.held_bytes)
        await until(lambda: not gateway.limits.in_flight)
        assert (gateway.inferences.submissions, gateway.limits.held_bytes) == ([], 0)


@pytest.mark.parametrize("path", [b"/r-1?wait=50", b"/r-1/events"])
async def test_client_gone_while_it_waits_frees_its_place(path: bytes) -> None:
    """Nobody waits for a client that has hung up."""
    async with served() as gateway:
        gateway.inferences.accept("r-1")
        async with gateway.line() as line:
            line.send(get(PLACE + path))
            await until(lambda: gateway.inferences.waits)
        await until(lambda: not gateway.limits.in_flight)
        assert (gateway.inferences.waits, gateway.inferences.abandoned) == (0, 1)


@pytest.mark.parametrize("path", [b"/r-1", b"/r-1/events"])
async def test_client_that_does_not_read_is_cut(path: bytes) -> None:
    """A result of 4 MiB to a client with a window of 4 KiB that reads none of it: the connection is ended."""
    async with served(body_timeout_s=0.2, max_in_flight_bytes=16 << 20) as gateway:
        text = a_result("r-1").value
        gateway.inferences.answer("r-1", a_result("r-1")._replace(value=text.replace(b"digits", b"d" * (4 << 20))))
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", gateway.port))
            await loop.sock_sendall(client, get(PLACE + path))
            await until(lambda: gateway.limits.held_bytes)
            await until(lambda: not gateway.connections.open)
            await until(lambda: not gateway.limits.in_flight)
        assert gateway.limits.held_bytes == 0


@pytest.mark.parametrize(("size", "header"), [(120_000, b"x: y"), (50_000, b"connection: close")])
async def test_rest_of_an_answer_that_nobody_reads_is_dropped(size: int, header: bytes) -> None:
    """The request is over, the connection's buffer is not empty: kept or to be closed, it is not held for ever."""
    async with served(body_timeout_s=0.3, send_buffer=4096) as gateway:
        gateway.inferences.answer("r-1", StoredResult(bytes(16), 0, b" " * size))
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", gateway.port))
            await loop.sock_sendall(client, get(PLACE + b"/r-1", header))
            await until(lambda: gateway.inferences.looks and not gateway.limits.in_flight)
            await until(lambda: not gateway.connections.open)


async def test_gzip_bomb_is_refused() -> None:
    """16 MiB of zeros in 16 KiB are over the limit, and the next request is served."""
    async with served() as gateway:
        bomb = gzip.compress(bytes(16 << 20))
        answer = await gateway.ask(post(bomb, b"content-encoding: gzip"))
        assert (answer.status, answer.code) == (413, "PAYLOAD_TOO_LARGE")
        assert (await gateway.ask(post(JSON_BYTES))).status == 202


async def test_stop_ends_everything_in_order() -> None:
    """Long polls are answered, streams end, kept connections are closed, and nobody is let in any more."""
    async with served() as gateway, gateway.line() as idle, gateway.line() as polling, gateway.line() as streaming:
        gateway.inferences.accept("r-1")
        idle.send(get(b"/health/live"))
        assert (await idle.answer()).status == 200
        polling.send(get(PLACE + b"/r-1?wait=50"))
        streaming.send(get(PLACE + b"/r-1/events"))
        await until(lambda: gateway.inferences.waits == 2)
        gateway.stop.set()
        answer = await polling.answer()
        assert (answer.status, json.loads(answer.body)["status"]) == (202, "pending")
        stream = await streaming.reader.read()
        assert b"event: accepted" in stream
        assert stream.endswith(b"0\r\n\r\n")
        assert await idle.is_closed()
        assert await gateway.serving == 0
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", gateway.port)


async def test_stop_waits_for_a_body_and_cuts_it_off_in_the_end() -> None:
    """What is in flight has `drain_s`; new requests meanwhile are told to go elsewhere."""
    async with served(drain_s=0.3) as gateway, gateway.line() as slow, gateway.line() as late:
        late.send(get(b"/health/live"))
        assert (await late.answer()).status == 200
        slow.send(post(b"{", length=100))
        await until(lambda: gateway.limits.held_bytes)
        gateway.stop.set()
        await until(gateway.limits.stopping.is_set)
        late.send(post(JSON_BYTES))
        answer = await late.answer()
        assert (answer.status, answer.code, answer.headers["connection"]) == (503, "STOPPING", "close")
        assert await gateway.serving == 0


def test_port_that_is_taken_is_told() -> None:
    """A port that was asked for is named with its setting; where none was, the next free one is taken."""
    with bound_socket(GatewaySettings(port=0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(Exception, match=rf"PIPELINE_GATEWAY__PORT is {port}: another process listens there"):
            bound_socket(GatewaySettings(port=port))
    with bound_socket(GatewaySettings()) as second, bound_socket(GatewaySettings()) as third:
        ports = [one.getsockname()[1] for one in (second, third)]
    assert 8080 <= ports[0] < ports[1] < 8280


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_host_of_another_machine_is_told(host: str) -> None:
    """What cannot be listened on is named by its setting."""
    with pytest.raises(Exception, match=rf"PIPELINE_GATEWAY__HOST is '{host}'"):
        bound_socket(GatewaySettings(host=host, port=0))

"""One attempt over real sockets: what receivers may do, and where no connection ever goes."""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.adapters.webhook_http import LookUp, WebhookHttp
from pipeline.core.callback_url import read_url
from pipeline.core.webhook_schedule import Answered, Outcome, Refused, Unanswered
from tests.webhooks.receivers import (
    RawReceiver,
    Receiver,
    Speak,
    answer_slowly,
    client_tls,
    die,
    dribble,
    flood,
    hang,
    talk_nonsense,
)

LOCAL = (ipaddress.ip_network("127.0.0.0/8"),)
# What ends by itself ends well within it.
LIMIT_S = 8.0
HEADERS = {"webhook-id": "r-1", "content-type": "application/json"}


async def post(url: str, body: bytes = b"{}", *, timeout_s: float = 5.0, allowed: Any = LOCAL, **given: Any) -> Outcome:
    """One attempt."""
    async with WebhookHttp(allowed, timeout_s, look_ups_max=4, **given) as http:
        return await http.post(read_url(url, allow_http=True), body, HEADERS)


def answering(*answers: Sequence[str]) -> tuple[LookUp, list[str]]:
    """A resolver that gives one answer after the other, and the names it was asked for."""
    asked: list[str] = []

    async def look_up(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    return look_up, asked


async def test_body_and_headers_arrive_as_they_are() -> None:
    """A POST with the very bytes, our headers, the name as Host, and no encoding that would have to be undone."""
    body = b'{"id":"r-1"}' + bytes(range(256)) * 8192
    async with Receiver() as receiver:
        look_up, _ = answering(["127.0.0.1"])
        url = f"http://receiver.example:{receiver.port}/a%2Fb?c=%20d"
        assert await post(url, body, look_up=look_up) == Answered(204)
    (call,) = receiver.received
    assert (call.path, call.body) == ("/a%2Fb?c=%20d", body)
    assert call.headers["host"] == f"receiver.example:{receiver.port}"
    assert {name: call.headers[name] for name in HEADERS} == HEADERS
    assert call.headers["content-length"] == str(len(body))
    assert call.headers["user-agent"].startswith("inference-pipeline-webhooks/")
    assert call.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("status", [200, 301, 307, 410, 429, 500])
async def test_status_is_the_outcome(status: int) -> None:
    """Whatever the receiver answers is told, with its Retry-After; nobody is led elsewhere."""
    async with Receiver() as elsewhere:
        headers = {"Location": elsewhere.url("/stolen"), "Retry-After": "7"}
        async with Receiver(answers={"/": [(status, headers)]}) as receiver:
            assert await post(receiver.url("/")) == Answered(status, "7")
    assert (len(receiver.received), elsewhere.received) == (1, [])


@pytest.mark.parametrize(
    ("speak", "kind"), [(hang, "timeout"), (dribble, "timeout"), (die, "connection"), (talk_nonsense, "protocol")]
)
async def test_bad_receivers_are_told_apart(speak: Speak, kind: str) -> None:
    """One that hangs or dribbles ends with the attempt's time, one that dies or talks nonsense at once."""
    async with RawReceiver(speak) as receiver, asyncio.timeout(LIMIT_S):
        outcome = await post(receiver.url(), timeout_s=0.5 if kind == "timeout" else 10 * LIMIT_S)
    assert isinstance(outcome, Unanswered)
    assert outcome.kind == kind


async def test_slow_answer_counts_by_its_status() -> None:
    """A body that dribbles is not waited for beyond the attempt, and does not undo the status."""
    async with RawReceiver(answer_slowly) as receiver, asyncio.timeout(LIMIT_S):
        assert await post(receiver.url(), timeout_s=0.5) == Answered(200)


@pytest.mark.parametrize(
    ("speak", "status"),
    [
        (flood(b"200 OK"), 200),
        (flood(b"200 OK", b"Transfer-Encoding: chunked\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"), 200),
        (flood(b"200 OK", b"Content-Encoding: gzip\r\n"), 200),
        (flood(b"500 Oh", b"Content-Length: 99999999999\r\n"), 500),
    ],
)
async def test_huge_answers_are_cut(speak: Speak, status: int) -> None:
    """A body without an end, broken or a bomb is read for a moment, however long the attempt might take."""
    async with RawReceiver(speak) as receiver, asyncio.timeout(LIMIT_S):
        assert await post(receiver.url(), timeout_s=10 * LIMIT_S) == Answered(status)


async def test_closed_port_is_no_connection() -> None:
    """Nobody there is told as such."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        outcome = await post(f"http://127.0.0.1:{probe.getsockname()[1]}/")
    assert isinstance(outcome, Unanswered)
    assert outcome.kind == "connection"


async def test_name_without_an_address_is_told() -> None:
    """A name that resolves to nothing, or cannot be resolved, is a failure of DNS."""

    async def fails(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    for look_up in (fails, answering([])[0]):
        outcome = await post("https://nobody.example/", look_up=look_up)
        assert isinstance(outcome, Unanswered)
        assert outcome.kind == "dns"


async def test_slow_resolver_ends_with_the_attempt() -> None:
    """A name whose servers are silent costs the attempt's time and no more."""
    async with RawReceiver(hang) as silent:

        async def waits(host: str, port: int) -> Sequence[str]:
            async with WebhookHttp(LOCAL, 60, look_ups_max=1) as http:
                await http.post(read_url(silent.url(), allow_http=True), b"", {})
            return []

        outcome = await post("https://slow.example/", look_up=waits, timeout_s=0.3)
    assert isinstance(outcome, Unanswered)
    assert outcome.kind == "timeout"


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["0.0.0.0"]])
async def test_private_addresses_are_never_connected_to(addresses: list[str]) -> None:
    """A name that leads to a server here, alone or among public addresses, meets no open connection."""
    async with RawReceiver(hang) as receiver:
        look_up, _ = answering(addresses)
        outcome = await post(f"http://inside.example:{receiver.port}/", look_up=look_up, allowed=())
        assert isinstance(outcome, Refused)
        assert "inside.example has the address" in outcome.text
        assert receiver.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "[fd00:ec2::254]"])
async def test_literal_addresses_are_judged_as_names_are(host: str) -> None:
    """An address in the URL is asked of no resolver, and checked all the same."""
    async with RawReceiver(hang) as receiver:
        look_up, asked = answering(["8.8.8.8"])
        assert isinstance(await post(f"http://{host}:{receiver.port}/", look_up=look_up, allowed=()), Refused)
        assert (receiver.connections, asked) == (0, [])


async def test_system_resolver_is_checked_too() -> None:
    """`localhost`, as this machine resolves it, is this machine, and it is not called."""
    async with RawReceiver(hang) as receiver:
        assert isinstance(await post(f"http://localhost:{receiver.port}/", allowed=()), Refused)
        assert receiver.connections == 0


async def test_name_that_changes_its_address_gains_nothing() -> None:
    """Each attempt resolves once and calls what it got: an answer that differs a moment later is never asked for."""
    async with Receiver() as receiver:
        look_up, asked = answering(["127.0.0.1"], ["10.0.0.1"])
        async with WebhookHttp(LOCAL, 5, look_ups_max=4, look_up=look_up) as http:
            url = read_url(f"http://changing.example:{receiver.port}/", allow_http=True)
            assert await http.post(url, b"{}", HEADERS) == Answered(204)
            assert asked == ["changing.example"]
            # No connection and no answer is kept: the next attempt asks again, and is refused.
            assert isinstance(await http.post(url, b"{}", HEADERS), Refused)
    assert (len(receiver.received), len(asked)) == (1, 2)


async def test_tls_is_verified_against_the_name() -> None:
    """The certificate must be believed and be the name's, though the connection goes to an address."""
    async with Receiver(tls=True) as receiver:
        look_up, _ = answering(["127.0.0.1"])

        async def call(host: str, **given: Any) -> Outcome:
            return await post(f"https://{host}:{receiver.port}/", look_up=look_up, **given)

        assert await call("receiver.example", tls=client_tls()) == Answered(204)
        for outcome in (await call("other.example", tls=client_tls()), await call("receiver.example")):
            assert isinstance(outcome, Unanswered)
            assert outcome.kind == "tls"
    assert len(receiver.received) == 1


async def test_plain_server_on_https_is_no_answer() -> None:
    """Nothing is sent to a server that does not speak TLS."""
    async with Receiver() as receiver:
        outcome = await post(f"https://127.0.0.1:{receiver.port}/")
    assert isinstance(outcome, Unanswered)
    assert receiver.received == []


async def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would connect where it likes: none is used."""
    async with RawReceiver(hang) as proxy, Receiver() as receiver:
        monkeypatch.setenv("http_proxy", proxy.url())
        assert await post(receiver.url()) == Answered(204)
        assert proxy.connections == 0

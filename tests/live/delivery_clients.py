"""Clients of a delivery as its documents want them: they repeat what broke, and come back where they were cut off.

What they note is what was heard, byte for byte; whether it is right is the verdict's to say (`delivery_verdict`).
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import aiohttp
import orjson

from tests.live.delivery_plan import Planned, Route

# A killed worker's partitions wait for its session, then for the other one's ledger; with Kafka away until a gateway
# has given up waiting (15 s), everything waits, and then for Kafka's start and its groups.
ANSWER_S_MAX = 90.0
# A gateway waits 15 s for Kafka and says 503; a sooner end of the client's patience would hide that.
ATTEMPT_S_MAX = 20.0
PAUSE_S = 0.1
_RETRIED = frozenset({429, 503})


class Name(NamedTuple):
    """A request, of everybody's."""

    tenant: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Heard:
    """A result as somebody got it.

    Attributes:
        how: over which route.
        body: the record's bytes; of `/v2` the protocol's answer.
    """

    name: Name
    how: str
    body: bytes


@dataclass
class Account:
    """What clients saw.

    Attributes:
        receipts: the request that each receipt is for; one request may have several receipts.
        heard: results.
        counts: of what was met on the way.
        sent_again: requests that were sent more than once.
        faults: what no client should see.
    """

    receipts: dict[Name, Planned] = field(default_factory=dict)
    heard: list[Heard] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    sent_again: set[Name] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def accepted(self, name: Name, planned: Planned) -> None:
        """A receipt."""
        before = self.receipts.setdefault(name, planned)
        if before != planned:
            self.faults.append(f"{name} is the receipt of two requests: {before} and {planned}")
        async with self._changed:
            self._changed.notify_all()

    async def until_receipts(self, count: int) -> None:
        """Returns when so many requests have receipts."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.receipts) >= count)


class Answer(NamedTuple):
    """An HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClients:
    """Drives requests over HTTP.

    Args:
        session: without a limit on connections.
        urls: of the gateways.
        keys: API keys by tenant.
        account: what is noted.
        body_of: the JSON of a request.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        urls: Sequence[str],
        keys: Mapping[str, str],
        account: Account,
        body_of: Callable[[Planned], bytes],
    ) -> None:
        self._session = session
        self._urls = urls
        self._keys = keys
        self._account = account
        self._body_of = body_of

    async def drive(self, planned: Planned) -> None:
        """One request to its end; what comes of it is in the account."""
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                await self._drive(planned)
        except TimeoutError:
            self._account.faults.append(f"{planned}: not at its end within {ANSWER_S_MAX:g} s")

    async def _drive(self, planned: Planned) -> None:
        match planned.route:
            case Route.V2:
                await self._infer(planned)
            case Route.EVENTS:
                name = await self._hand_in(planned, planned.gateway)
                await self._listen(planned, name)
            case Route.CALLBACK:
                await self._hand_in(planned, planned.gateway)
            case Route.TWICE:
                first, second = await asyncio.gather(*(self._hand_in(planned, gateway) for gateway in (0, 1)))
                self._account.sent_again.add(first)
                if first != second:
                    self._account.faults.append(f"{planned}: two names, {first} and {second}")
                await self.fetch(first, planned.gateway, 5)
            case Route.PREFERRED:
                await self._prefer(planned)
            case Route.LONG_POLLED:
                await self.fetch(await self._hand_in(planned, planned.gateway), planned.gateway, 10)
            case _:
                await self.fetch(await self._hand_in(planned, planned.gateway), planned.gateway, 0)

    async def fetch(self, name: Name, gateway: int, wait_s: int) -> None:
        """Asks for a result until it is there."""
        path = f"/v1/inferences/{name.request_id}" + (f"?wait={wait_s}" if wait_s else "")
        while True:
            answer = await self._ask("GET", path, name.tenant, gateway, patience_s=wait_s + ATTEMPT_S_MAX)
            if answer is not None and answer.status == 200:
                self._account.heard.append(Heard(name, "get", answer.body))
                return
            if answer is None:
                gateway = 1 - gateway
            elif answer.status == 404:
                self._account.counts["404 after a receipt"] += 1
            elif answer.status != 202 and answer.status not in _RETRIED:
                self._account.faults.append(f"GET {path} answered {answer.status}: {answer.body[:200]!r}")
                return
            await asyncio.sleep(PAUSE_S)

    async def _hand_in(self, planned: Planned, gateway: int, **headers: str) -> Name:
        """Sends a request until there is a receipt."""
        return await self._accepted(planned, await self._posted(planned, gateway, headers))

    async def _prefer(self, planned: Planned) -> None:
        answer = await self._posted(planned, planned.gateway, {"prefer": "wait=8"})
        name = await self._accepted(planned, answer)
        if answer.status == 200:
            self._account.heard.append(Heard(name, "prefer", answer.body))
        else:
            await self.fetch(name, 1 - planned.gateway, 5)

    async def _infer(self, planned: Planned) -> None:
        answer = await self._posted(planned, planned.gateway, {})
        name = await self._accepted(planned, answer)
        self._account.heard.append(Heard(name, "v2", answer.body))

    async def _posted(self, planned: Planned, gateway: int, headers: Mapping[str, str]) -> Answer:
        """Sends a request, under the same key or id, until it is taken in."""
        body = self._body_of(planned)
        path = "/v2/models/digits/infer" if planned.is_v2 else "/v1/inferences"
        sent = {"content-type": "application/json", **headers}
        if planned.route is Route.V2_ASYNC:
            sent["prefer"] = "respond-async"
        if planned.key is not None:
            sent["idempotency-key"] = planned.key
        times, wanted = 0, 200 if planned.route is Route.V2 else 202
        while True:
            times += 1
            answer = await self._ask("POST", path, planned.tenant, gateway, body, sent, ATTEMPT_S_MAX + 10)
            if answer is not None and answer.status in {200, wanted}:
                if times > 1:
                    self._account.sent_again.add(Name(planned.tenant, orjson.loads(answer.body)["id"]))
                return answer
            if answer is not None and answer.status not in _RETRIED:
                # One that waited in vain for an answer of /v2 was taken in, and is asked for again like a broken one.
                if answer.status != 504:
                    self._account.faults.append(f"POST {path} answered {answer.status}: {answer.body[:200]!r}")
                self._account.counts[f"POST {answer.status}"] += 1
            gateway = 1 - gateway
            await asyncio.sleep(PAUSE_S)

    async def _accepted(self, planned: Planned, answer: Answer) -> Name:
        """The request that an answer is a receipt for; it is noted."""
        told = Name(planned.tenant, orjson.loads(answer.body)["id"])
        if planned.request_id not in {None, told.request_id}:
            self._account.faults.append(f"{planned}: the receipt is for {told}")
        await self._account.accepted(told, planned)
        return told

    async def _listen(self, planned: Planned, name: Name) -> None:
        """Server-sent events, from where the last stream ended, until `result`; then there is no more to hear."""
        last, gateway = "", planned.gateway
        while last != "result":
            last = await self._stream(name, gateway, last)
            gateway = 1 - gateway
        await self._hear_no_more(name, gateway)

    async def _hear_no_more(self, name: Name, gateway: int) -> None:
        """Whoever has heard the result is told that there is nothing else."""
        path, heard = f"/v1/inferences/{name.request_id}/events", {"last-event-id": "result"}
        while True:
            answer = await self._ask("GET", path, name.tenant, gateway, headers=heard)
            if answer is not None and answer.status not in {404, *_RETRIED}:
                if answer.status != 204:
                    self._account.faults.append(f"{path} after the result: {answer.status}, expected 204")
                return
            gateway = 1 - gateway
            await asyncio.sleep(PAUSE_S)

    async def _stream(self, name: Name, gateway: int, last: str) -> str:
        """One stream to its end, however it ends; the id of the last event that was heard."""
        headers = {"authorization": f"Bearer {self._keys[name.tenant]}"} | ({"last-event-id": last} if last else {})
        url = f"{self._urls[gateway]}/v1/inferences/{name.request_id}/events"
        try:
            async with self._session.get(url, headers=headers, timeout=_patience(ANSWER_S_MAX)) as response:
                if response.status != 200:
                    self._account.counts[f"events {response.status}"] += 1
                    if response.status not in {404, *_RETRIED}:
                        self._account.faults.append(f"events of {name}: {response.status}")
                    await asyncio.sleep(PAUSE_S)
                    return last
                fields: dict[str, bytes] = {}
                async for line in response.content:
                    if line != b"\n":
                        word, _, value = line.rstrip(b"\n").partition(b": ")
                        fields[word.decode()] = value
                    elif "event" in fields:
                        last = self._event(name, last, fields)
                        fields = {}
        except (aiohttp.ClientError, TimeoutError):
            self._account.counts["streams that broke"] += 1
            await asyncio.sleep(PAUSE_S)
        return last

    def _event(self, name: Name, last: str, fields: Mapping[str, bytes]) -> str:
        told = fields["event"].decode()
        if (told, last) not in {("accepted", ""), ("result", "accepted")}:
            self._account.faults.append(f"events of {name}: {told!r} after {last!r}")
        if told == "result":
            self._account.heard.append(Heard(name, "events", fields["data"]))
        return fields["id"].decode()

    async def _ask(
        self,
        method: str,
        path: str,
        tenant: str,
        gateway: int,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        patience_s: float = ATTEMPT_S_MAX,
    ) -> Answer | None:
        """One exchange; None where the connection broke."""
        sent = {"authorization": f"Bearer {self._keys[tenant]}", **(headers or {})}
        try:
            async with self._session.request(
                method, self._urls[gateway] + path, data=body, headers=sent, timeout=_patience(patience_s)
            ) as response:
                answer = Answer(response.status, response.headers, await response.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            is_hung = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError)
            self._account.counts[f"{method} hung" if is_hung else f"{method} broke"] += 1
            return None
        if answer.status in _RETRIED:
            self._note_refusal(f"{method} {path}", answer)
        return answer

    def _note_refusal(self, asked: str, answer: Answer) -> None:
        """A refusal says why, in a word to branch on, and when to come again."""
        document = orjson.loads(answer.body)
        code = document.get("code", "of /v2" if "error" in document else "")
        self._account.counts[f"{answer.status} {code}"] += 1
        if not code or not answer.headers.get("retry-after", "").isdigit():
            self._account.faults.append(
                f"{asked} answered {answer.status}: {dict(answer.headers)}, {answer.body!r:.200}"
            )


def _patience(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds)

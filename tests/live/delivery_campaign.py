"""A delivery under strikes: clients that ask over every route, parts that die meanwhile, and what is left of it all."""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp
import orjson
from aiokafka import AIOKafkaProducer, ConsumerRecord
from standardwebhooks import Webhook, WebhookVerificationError

from pipeline.adapters.kafka import client_options
from pipeline.adapters.keys_topic import write_key
from pipeline.config import Settings
from pipeline.core.api_keys import ID_BYTES, SECRET_BYTES, make_key, record_of
from tests.live.delivery_clients import ANSWER_S_MAX, Account, HttpClients, Name
from tests.live.delivery_parts import Killable, Part, Parts
from tests.live.delivery_plan import TENANTS, Planned, Reference, Route
from tests.live.delivery_verdict import Evidence
from tests.live.stack import LiveStack
from tests.live.topics import TopicLog, end_offsets, prepare_topics
from tests.webhooks.callbacks import OLD_SECRET, QUICK, SECRET, with_webhooks
from tests.webhooks.receivers import Answer, Received, Receiver

# While a worker is dead those of its partitions wait: with fewer, all would, and nothing flowed.
AT_A_TIME = 192
# How many results are asked for again, of each gateway, when everything is over.
_SAMPLE = 200
_DRAIN_S = 90.0
_SIGNED_BY = {"": SECRET, "acme": OLD_SECRET}
# An attempt has longer than in the tests of webhooks: its receiver shares a core with thousands of clients here.
_WEBHOOKS = QUICK | {"timeout_s": 5.0}
# Every third callback is refused once, so that there are always some in a delay tier.
_REFUSED_EVERY = 3
_REFUSED_ONCE: list[Answer] = [(500, {}), (204, {})]


class Strikes:
    """Kills one part after the other, each once so many requests have receipts, and starts it again.

    Args:
        parts: in the order of their strikes.
        account: knows the receipts.
        requests: how many there will be.
    """

    def __init__(self, parts: Sequence[Killable], account: Account, requests: int) -> None:
        self._every = requests // (len(parts) + 1)
        self._plan = [(self._every * number, part) for number, part in enumerate(parts, 1)]
        self._account = account
        self._made = 0
        self._struck = asyncio.Condition()

    async def run(self) -> None:
        """Makes all of them."""
        for threshold, part in self._plan:
            await self._account.until_receipts(threshold)
            await part.kill()
            await part.restart()
            async with self._struck:
                self._made += 1
                self._struck.notify_all()

    async def permit(self, number: int) -> None:
        """Returns when a request of this number may be sent: none is, where a strike would find nothing that flows."""

        def is_permitted() -> bool:
            return self._made == len(self._plan) or number < self._plan[self._made][0] + self._every

        if not is_permitted():
            async with self._struck:
                await self._struck.wait_for(is_permitted)


class Campaign:
    """One delivery under strikes.

    Args:
        settings: of all parts.
        plan: what is asked.
        reference: what is right.
        keys: API keys by tenant.
        gateways: their addresses.
        receiver: of callbacks, open.

    Attributes:
        account: what clients saw.
    """

    def __init__(
        self,
        settings: Settings,
        plan: Sequence[Planned],
        reference: Reference,
        keys: Mapping[str, str],
        gateways: Sequence[str],
        receiver: Receiver,
    ) -> None:
        self.account = Account()
        self._settings = settings
        self._plan = plan
        self._reference = reference
        self._keys = keys
        self._gateways = gateways
        self._receiver = receiver

    async def run(self, strikes: Strikes) -> None:
        """Asks everything, makes all strikes, and asks every gateway for some of the results once more."""
        callbacks = [planned for planned in self._plan if planned.route is Route.CALLBACK]
        refused = [self._path(planned) for planned in callbacks[::_REFUSED_EVERY]]
        self._receiver.answers |= dict.fromkeys(refused, _REFUSED_ONCE)
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
            self._producer() as producer,
        ):
            clients = HttpClients(session, self._gateways, self._keys, self.account, self._body_of)
            waiting = iter(self._plan)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(strikes.run())
                for _ in range(AT_A_TIME):
                    tasks.create_task(self._ask_in_turn(waiting, strikes, clients, producer))
            sample = random.Random(1).sample(sorted(self.account.receipts), min(_SAMPLE, len(self.account.receipts)))
            for number in range(len(self._gateways)):
                await asyncio.gather(*(clients.fetch(name, number, 10) for name in sample))
        paths = {self._path(planned): 1 for planned in callbacks} | dict.fromkeys(refused, 2)
        await self._delivered(paths)

    def _producer(self) -> AIOKafkaProducer:
        """Sends each record once, however long Kafka is away."""
        options = client_options(self._settings.kafka)
        return AIOKafkaProducer(
            **options, acks="all", enable_idempotence=True, request_timeout_ms=int(ANSWER_S_MAX * 1e3)
        )

    async def _delivered(self, paths: Mapping[str, int]) -> None:
        """Returns when each path has had so many calls."""

        def is_missing(calls: Sequence[Received]) -> bool:
            left = dict(paths)
            for call in calls:
                left[call.path] = left.get(call.path, 0) - 1
            return any(count > 0 for count in left.values())

        await self._receiver.until(lambda calls: not is_missing(calls), _DRAIN_S)

    async def evidence(self) -> Evidence:
        """Everything that is left of it; nothing writes any more."""
        topics = {name: await whole_topic(self._settings, name) for name in ("results", "replies", "dead-letter")}
        return Evidence(
            self.account,
            requests=await whole_topic(self._settings, "requests"),
            results=topics["results"],
            replies=topics["replies"],
            dead_letters=topics["dead-letter"],
            calls=self._receiver.received,
            is_signed=is_signed,
        )

    async def _ask_in_turn(
        self, waiting: Iterator[Planned], strikes: Strikes, clients: HttpClients, producer: AIOKafkaProducer
    ) -> None:
        for planned in waiting:
            await strikes.permit(planned.number)
            if planned.is_kafka:
                await producer.send_and_wait(self._settings.topic("requests"), self._body_of(planned))
                await self.account.accepted(Name(planned.tenant, planned.request_id or ""), planned)
            else:
                await clients.drive(planned)

    def _body_of(self, planned: Planned) -> bytes:
        body: dict[str, Any] = {"inputs": self._reference.inputs(planned.image)}
        if planned.request_id is not None:
            body["id"] = planned.request_id
        if not planned.is_v2:
            body["model_name"] = "digits"
        if planned.is_kafka and planned.tenant:
            body["tenant"] = planned.tenant
        if planned.route is Route.KAFKA_REPLY:
            body["reply_to"] = {"partition": planned.number % self._settings.kafka.reply_partitions}
        if planned.route is Route.CALLBACK:
            body["callback"] = {"url": self._receiver.url(self._path(planned))}
        return orjson.dumps(body)

    @staticmethod
    def _path(planned: Planned) -> str:
        return f"/{planned.number}/{planned.tenant}"


async def made_keys(settings: Settings) -> dict[str, str]:
    """An API key of each tenant."""
    keys = {}
    for tenant in TENANTS:
        key = make_key(secrets.token_bytes(ID_BYTES + SECRET_BYTES))
        record = record_of(key, tenant=tenant, label="", rate=None, burst=None, now=datetime.now(UTC))
        await write_key(client_options(settings.kafka), settings.topic("keys"), key.id, record)
        keys[tenant] = str(key)
    return keys


async def whole_topic(settings: Settings, name: str) -> list[ConsumerRecord]:
    """All records of a topic that nobody writes to any more."""
    ends = await end_offsets(settings, name)
    async with TopicLog(settings, name) as log:
        return await log.until(lambda records: len(records) >= sum(ends.values()), _DRAIN_S, f"all of {name}")


def is_signed(tenant: str, call: Received) -> bool:
    """Whether the standard's own library believes a call with the tenant's secret."""
    try:
        Webhook(_SIGNED_BY[tenant]).verify(call.body, call.headers)
    except WebhookVerificationError:
        return False
    return True


@asynccontextmanager
async def running(stack: LiveStack, settings: Settings, *names: str) -> AsyncIterator[dict[str, Part]]:
    """Parts by their names, on topics made for them; API keys are asked for."""
    await prepare_topics(with_webhooks(settings), stack.models.values())
    variables = {f"PIPELINE_WEBHOOKS__{name.upper()}": orjson.dumps(one).decode() for name, one in _WEBHOOKS.items()}
    variables["PIPELINE_GATEWAY__REQUIRE_KEYS"] = "true"
    parts = {name: Part(name, settings, variables) for name in names}
    async with Parts(*parts.values()):
        yield parts

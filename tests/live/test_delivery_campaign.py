"""Requests over every route while gateways, workers, webhooks, Valkey and Kafka are killed, judged by an oracle."""

import logging
import os
import random
import signal
from contextlib import suppress

import pytest

from pipeline.sink.migrations import migrate
from tests.adapters.valkey_process import ValkeyProcess
from tests.live.delivery_campaign import Campaign, Strikes, made_keys, running
from tests.live.delivery_clients import Account
from tests.live.delivery_parts import Killable, KillableValkey, Part
from tests.live.delivery_plan import Reference, make_plan
from tests.live.delivery_verdict import verdict
from tests.live.stack import LiveStack
from tests.live.waiting import until
from tests.webhooks.receivers import Receiver

pytestmark = [pytest.mark.live, pytest.mark.slow]

_log = logging.getLogger(__name__)

SEED = 20261127
REQUESTS = 10_000
OUTAGE_REQUESTS = 1500
# A gateway waits 15 s for Kafka before it says that it is away.
REFUSED_S_MAX = 60.0
# What a gateway that lives may say while Kafka is away: neither broken connections nor hung ones are among it. Those it
# has no time for when everything is sent again are told to come later.
OF_AN_OUTAGE = {"503 KAFKA_UNAVAILABLE", "503 of /v2", "429 OVERLOADED", "429 of /v2"}


class KillableKafka:
    """The only broker there is, which its supervisor starts again.

    Args:
        kafka: the stack that has it.
        account: of clients, who are told.
        parts: what must be well again with it.
    """

    name = "kafka"

    def __init__(self, kafka: LiveStack, account: Account, parts: list[Part]) -> None:
        self._kafka = kafka
        self._account = account
        self._parts = parts

    async def kill(self) -> None:
        """Killed, and again whenever it comes back, until a client was refused for it."""

        async def is_told() -> bool:
            with suppress(KeyError, ProcessLookupError):  # not there at present
                os.kill(self._kafka.pid("kafka"), signal.SIGKILL)
            return bool(self._account.counts["503 KAFKA_UNAVAILABLE"])

        await until(is_told, REFUSED_S_MAX, "a request is refused")

    async def restart(self) -> None:
        """Nobody is told: every part comes to itself."""
        for part in self._parts:
            await part.wait_ready()


@pytest.mark.timeout(420)
async def test_every_receipt_has_one_answer_over_every_route(stack: LiveStack, valkey: ValkeyProcess) -> None:
    """10,000 requests while everything is killed in turn: one right answer each, the same bytes wherever it is read."""
    valkey.reset()
    settings = stack.make_settings(redis={"url": valkey.url}, kafka={"session_timeout_s": 6.0})
    await migrate(settings.clickhouse)
    reference = Reference(SEED)
    names = ("gateway-0", "gateway-1", "worker-0", "worker-1", "webhooks", "sink")
    async with Receiver() as receiver, running(stack, settings, *names) as parts:
        gateways = [parts["gateway-0"].url, parts["gateway-1"].url]
        plan = make_plan(SEED, REQUESTS)
        campaign = Campaign(settings, plan, reference, await made_keys(settings), gateways, receiver)
        victims: list[Killable] = [part for name, part in parts.items() if name != "sink"]
        victims += [KillableValkey(valkey), KillableValkey(valkey)]
        random.Random(SEED).shuffle(victims)
        await campaign.run(Strikes(victims, campaign.account, REQUESTS))
        evidence = await campaign.evidence()
    _log.info("%s: %s", [victim.name for victim in victims], evidence.counts())
    assert verdict(evidence, reference) == [], evidence.counts()
    assert len(campaign.account.receipts) == REQUESTS


@pytest.mark.timeout(300)
async def test_delivery_goes_on_after_kafka_was_killed(
    stack: LiveStack, own_kafka: LiveStack, valkey: ValkeyProcess
) -> None:
    """Kafka away: 503 with a code and Retry-After, no connection breaks; then it goes on by itself, callbacks too."""
    valkey.reset()
    settings = stack.make_settings(
        redis={"url": valkey.url},
        kafka={"session_timeout_s": 6.0, "bootstrap_servers": own_kafka.bootstrap_servers},
        clickhouse={"url": ""},
    )
    reference = Reference(SEED)
    async with Receiver() as receiver, running(stack, settings, "gateway", "worker", "webhooks") as parts:
        gateways = [parts["gateway"].url] * 2
        plan = make_plan(SEED, OUTAGE_REQUESTS)
        campaign = Campaign(settings, plan, reference, await made_keys(settings), gateways, receiver)
        kafka = KillableKafka(own_kafka, campaign.account, list(parts.values()))
        await campaign.run(Strikes([kafka], campaign.account, OUTAGE_REQUESTS))
        for part in parts.values():
            part.check_running()
        evidence = await campaign.evidence()
    _log.info("%s", evidence.counts())
    assert verdict(evidence, reference) == [], evidence.counts()
    assert len(campaign.account.receipts) == OUTAGE_REQUESTS
    assert campaign.account.counts.keys() <= OF_AN_OUTAGE

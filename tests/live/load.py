"""A steady load of requests that differ, and the account of their answers."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import orjson
from aiokafka import ConsumerRecord

from tests.live.asking import Asking, Sent, echo_request
from tests.live.topics import header

# Longer than any outage that a test makes.
_LAST_SEND_S = 60.0


class Load:
    """Sends requests at a pace while its block runs; `sent` are those that Kafka has.

    Args:
        asking: who sends.
        per_s: the pace.
        members: what the requests have besides.
    """

    def __init__(self, asking: Asking, per_s: float, **members: Any) -> None:
        self.sent: list[Sent] = []
        self._asking = asking
        self._pause_s = 1 / per_s
        self._members = members
        self._task: asyncio.Task[None] | None = None
        self._ending = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        # What is on its way is sent to its end: a record that Kafka has and this account has not would look wrong.
        self._ending = True
        await asyncio.wait([task], timeout=_LAST_SEND_S)
        task.cancel()
        outcome = await asyncio.gather(task, return_exceptions=True)
        if error is None and isinstance(outcome[0], Exception):
            raise outcome[0]

    async def answered(self, count: int, timeout_s: float) -> None:
        """Returns when so many of what was sent are answered, while more is sent."""
        await self._asking.results.until(
            lambda records: len(places(records) & set(self.sent)) >= count, timeout_s, f"{count} answers under load"
        )

    async def all_answered(self, timeout_s: float) -> Counter[Sent]:
        """How many results each request has, once each has one. All of them must have succeeded."""
        wanted = set(self.sent)
        records = await self._asking.results.until(
            lambda records: wanted <= places(records), timeout_s, f"all {len(wanted)} answers"
        )
        failed = [record.value for record in records if b'"status":"succeeded"' not in record.value]
        assert not failed, f"{len(failed)} failed, the first: {failed[0]!r}"
        return Counter(place for record in records if (place := place_of(record)) in wanted)

    async def _run(self) -> None:
        while not self._ending:
            request = echo_request(**self._members)
            # A random key spreads the load over all partitions, without batches of one partition.
            self.sent.append(await self._asking.send(orjson.dumps(request), key=uuid.uuid4().hex.encode()))
            await asyncio.sleep(self._pause_s)


def place_of(record: ConsumerRecord) -> Sent:
    """The request that a result answers."""
    return Sent(record.partition, int(header(record, "request-offset") or -1))


def places(records: Iterable[ConsumerRecord]) -> set[Sent]:
    """The requests that results answer."""
    return set(map(place_of, records))

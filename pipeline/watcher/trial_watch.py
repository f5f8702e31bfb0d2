"""What versions on trial and their defaults answer, read from the results topic while there is a trial.

Read without a group, from the topic's end when the first trial begins: a watcher that starts in the middle of one
counts from then on.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, ConsumerRecord
from aiokafka.errors import KafkaError

from pipeline.adapters.kafka import all_partitions, cancel_until_ended
from pipeline.core.trial_judge import Arm, verdict
from schemas.registry import ModelRecord

logger = logging.getLogger(__name__)

_RECONNECT_PAUSE_S = 1.0
_LENGTH = "inference-header-content-length"


class _Parameters(msgspec.Struct):
    cache_status: str = ""
    inference_ms: float | None = None


class _Result(msgspec.Struct):
    status: str
    model_version: str = ""
    parameters: _Parameters = msgspec.field(default_factory=_Parameters)


class TrialWatch:
    """Counts the answers of models with a version on trial.

    Args:
        kafka_options: for an aiokafka client.
        topic: the results topic's full name.
        fetch_bytes: of one partition; a record may be as large as the record limit.
    """

    def __init__(self, kafka_options: Mapping[str, Any], topic: str, fetch_bytes: int) -> None:
        self._options = kafka_options
        self._topic = topic
        self._fetch_bytes = fetch_bytes
        self._trials: dict[str, tuple[str, str, str]] = {}
        self._arms: dict[tuple[str, str], Arm] = {}
        self._reading: asyncio.Task[None] | None = None
        self._decoder = msgspec.json.Decoder(_Result)

    async def follow(self, records: Iterable[ModelRecord]) -> None:
        """Takes note of which trials there are now; reads while there is one."""
        trials = {
            record.model_name: (canary.version, record.default_version or "", canary.effective_at.isoformat())
            for record in records
            if (canary := record.canary) is not None
        }
        for name in trials.keys() | self._trials.keys():
            if trials.get(name) != self._trials.get(name):
                for version in self._trials.get(name, ())[:2]:
                    self._arms.pop((name, version), None)
        self._trials = trials
        if trials and self._reading is None:
            self._reading = asyncio.create_task(self._read(), name=f"read {self._topic}")
        elif not trials:
            await self.stop()

    async def stop(self) -> None:
        """Stops reading; idempotent."""
        task, self._reading = self._reading, None
        if task is not None:
            await cancel_until_ended(task)

    def verdicts(self) -> dict[str, tuple[str, str]]:
        """Model -> (version, reason) of trials that should end."""
        found: dict[str, tuple[str, str]] = {}
        for name, (trial, default, _) in self._trials.items():
            reason = verdict(self._arm(name, trial), self._arm(name, default))
            if reason is not None:
                found[name] = trial, reason
        return found

    def _arm(self, model_name: str, version: str) -> Arm:
        return self._arms.setdefault((model_name, version), Arm())

    async def _read(self) -> None:
        while True:
            consumer = AIOKafkaConsumer(
                **self._options, enable_auto_commit=False, auto_offset_reset="latest",
                max_partition_fetch_bytes=self._fetch_bytes,
            )  # fmt: skip
            try:
                await consumer.start()
                consumer.assign(await all_partitions(consumer, self._topic))
                await consumer.seek_to_end()
                while True:
                    for some in (await consumer.getmany(timeout_ms=500)).values():
                        for record in some:
                            self._count(record)
            except (KafkaError, OSError) as error:
                logger.warning("%s cannot be read, trying again: %s", self._topic, error)
            finally:
                await consumer.stop()
            await asyncio.sleep(_RECONNECT_PAUSE_S)

    def _count(self, record: ConsumerRecord) -> None:
        headers = {name.lower(): value for name, value in record.headers}
        name = (headers.get("ce_subject") or b"").decode("utf-8", "replace")
        if name not in self._trials:
            return
        length = headers.get(_LENGTH)
        value = record.value or b""
        try:
            result = self._decoder.decode(value if length is None else value[: int(length)])
        except (msgspec.DecodeError, ValueError) as error:
            logger.warning("%s@%d is no result: %s", self._topic, record.offset, error)
            return
        if result.model_version in self._trials[name][:2]:
            computed = result.parameters.cache_status in {"miss", "refresh", "bypass"}
            times = result.parameters.inference_ms if computed else None
            self._arm(name, result.model_version).count(succeeded=result.status == "succeeded", inference_ms=times)

"""The original bytes of lines whose rows ClickHouse refuses: read once more from the log, for rows do not keep them."""

from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from pipeline.core.event_batch import EventBatch, RejectedLine
from pipeline.core.event_rows import decode_line

# A record that was read a moment ago and cannot be read again within this is an outage of Kafka.
_FETCH_TIMEOUT_MS = 10_000


class LineReader:
    """Reads lines of the events topic by their events.

    Args:
        options: how clients connect.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)

    async def read(self, batch: EventBatch, reasons: Mapping[int, str]) -> list[RejectedLine]:
        """The first line of each event of a batch, with the reason given for it.

        An event whose record is gone from the log has an empty line.

        Raises:
            KafkaError: not reached, or refused.
        """
        offsets = dict(zip(batch.tables["events"]["event_id"], batch.offsets, strict=True))
        partition = TopicPartition(batch.topic, batch.partition)
        consumer = AIOKafkaConsumer(**self._options, enable_auto_commit=False, auto_offset_reset="earliest")
        async with consumer:
            consumer.assign([partition])
            values = {offset: await _value(consumer, partition, offset) for offset in {offsets[id_] for id_ in reasons}}
        return [
            RejectedLine(offsets[event_id], _line(values[offsets[event_id]], event_id), reason)
            for event_id, reason in reasons.items()
        ]


async def _value(consumer: AIOKafkaConsumer, partition: TopicPartition, offset: int) -> bytes:
    consumer.seek(partition, offset)
    fetched = await consumer.getmany(partition, timeout_ms=_FETCH_TIMEOUT_MS, max_records=1)
    values = [record.value for record in fetched.get(partition, []) if record.offset == offset]
    return values[0] or b"" if values else b""


def _line(value: bytes, event_id: int) -> bytes:
    for line in value.split(b"\n"):
        try:
            if line and decode_line(line).event[0] == event_id:
                return line
        except ValueError:
            continue  # a line that is no event stands in the same record
    return b""

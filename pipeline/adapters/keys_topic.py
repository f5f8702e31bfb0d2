"""The topic of API keys: the newest record of each key, followed by gateways, changed by `pipeline keys`."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from aiokafka import AIOKafkaProducer
from pydantic import ValidationError

from pipeline.adapters.compacted_topic import TableFollower, read_table
from schemas.api_key import ApiKeyRecord

logger = logging.getLogger(__name__)


def decode_key_record(key: bytes | None, value: bytes) -> ApiKeyRecord | None:
    """A record of the topic, or None (and a line in the log, without its content) when it is none."""
    try:
        record = ApiKeyRecord.model_validate_json(value)
    except ValidationError as error:
        logger.warning("a record of the keys topic is skipped: %d members are wrong", error.error_count())
        return None
    if key != record.id.encode():
        logger.warning("a record of the keys topic is skipped: its key is %r, its id %r", key, record.id)
        return None
    return record


async def read_keys(kafka_options: Mapping[str, Any], topic: str) -> dict[str, ApiKeyRecord]:
    """The keys there are, by id; raises what `read_table` raises."""
    return await read_table(kafka_options, topic, decode_key_record)


async def write_key(kafka_options: Mapping[str, Any], topic: str, key_id: str, record: ApiKeyRecord | None) -> None:
    """Keeps a key, or revokes it (None); returns when all in-sync replicas have it.

    Raises:
        KafkaError: the brokers do not take it.
    """
    value = None if record is None else record.model_dump_json(exclude_none=True).encode()
    async with AIOKafkaProducer(**kafka_options, acks="all", enable_idempotence=True) as producer:
        await producer.send_and_wait(topic, value, key=key_id.encode())


class KeysFollower(TableFollower[ApiKeyRecord]):
    """Follows the topic of keys: see `TableFollower`.

    Args:
        kafka_options: for an aiokafka client.
        topic: the topic's full name.
        on_key: called in this event loop with each new or changed key.
        on_revoked: called with a key's id when it was revoked.
    """

    def __init__(
        self,
        kafka_options: Mapping[str, Any],
        topic: str,
        on_key: Callable[[ApiKeyRecord], None],
        on_revoked: Callable[[str], None],
    ) -> None:
        super().__init__(kafka_options, topic, decode_key_record, on_key, on_revoked)

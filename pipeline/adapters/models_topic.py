"""The models topic: the newest record of each model, read once or followed (compacted_topic.py)."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from pipeline.adapters.compacted_topic import TableFollower, read_table
from schemas.registry import ModelRecord

logger = logging.getLogger(__name__)


def decode_model_record(key: bytes | None, value: bytes) -> ModelRecord | None:
    """A record of the topic, or None (and a line in the log) when it is none."""
    try:
        record = ModelRecord.model_validate_json(value)
    except ValidationError as error:
        logger.warning("a record of the models topic is skipped, key %r: %s", key, error.errors(include_url=False)[:1])
        return None
    if key != record.model_name.encode():
        logger.warning("a record of the models topic is skipped: its key is %r, its model %r", key, record.model_name)
        return None
    return record


async def read_models(kafka_options: Mapping[str, Any], topic: str, timeout_s: float = 30.0) -> dict[str, ModelRecord]:
    """The newest valid record of every model, read to the end the topic has now; raises what `read_table` raises."""
    return await read_table(kafka_options, topic, decode_model_record, timeout_s)


class ModelsFollower(TableFollower[ModelRecord]):
    """Follows the models topic: see `TableFollower`.

    Args:
        kafka_options: for an aiokafka client.
        topic: the topic's full name.
        on_record: called in this event loop with each new record. An exception from it ends the follower.
        on_removed: called with a model's name when its record was deleted.
        monotonic: the clock of `last_poll_monotonic`.
    """

    def __init__(
        self,
        kafka_options: Mapping[str, Any],
        topic: str,
        on_record: Callable[[ModelRecord], None],
        on_removed: Callable[[str], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(kafka_options, topic, decode_model_record, on_record, on_removed, monotonic)

"""Before a worker takes anything: Kafka answers, and its topics fit each other."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from pipeline.adapters.kafka import client_options
from pipeline.adapters.topics import check_partitions
from pipeline.config import Settings

logger = logging.getLogger(__name__)

_NEEDED = ("requests", "results", "events", "replies", "models", "dead-letter")
_PAUSE_FIRST_S = 0.5
_PAUSE_MAX_S = 10.0


async def wait_for_topics(settings: Settings) -> dict[str, int]:
    """Waits until Kafka answers and has all topics a worker needs; tells once what it waits for, and when that ends.

    Returns:
        Partitions by topic.

    Raises:
        TopicError: results has fewer partitions than requests: a result could not go where its request's number says.
    """
    pause, told = _PAUSE_FIRST_S, ""
    while True:
        try:
            partitions = await _partitions(client_options(settings.kafka))
        except (KafkaError, OSError) as error:
            problem = f"Kafka at {settings.kafka.bootstrap_servers} does not answer ({error})"
        else:
            missing = [settings.topic(name) for name in _NEEDED if settings.topic(name) not in partitions]
            if not missing:
                check_partitions(partitions, settings.topic("requests"), settings.topic("results"))
                return partitions
            problem = f"topics are missing: {', '.join(missing)}; `pipeline topics create` makes them"
        if problem != told:
            logger.warning("%s; waiting", problem)
            told = problem
        await asyncio.sleep(pause)
        pause = min(pause * 2, _PAUSE_MAX_S)


async def _partitions(options: Mapping[str, Any]) -> dict[str, int]:
    admin = AIOKafkaAdminClient(**options)
    await admin.start()
    try:
        topics = await admin.describe_topics()
    finally:
        await admin.close()
    return {topic["topic"]: len(topic["partitions"]) for topic in topics}

"""Before a worker takes anything: Kafka answers, and its topics are such that the worker's promises hold on them."""

import asyncio
import logging

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from pipeline.adapters.broker_limits import refused_by_brokers
from pipeline.adapters.kafka import client_options
from pipeline.adapters.topics import TopicConfigsForbidden, check_worker_topics, partition_counts
from pipeline.config import Settings

logger = logging.getLogger(__name__)

_NEEDED = ("requests", "results", "events", "replies", "models", "dead-letter", "webhooks")
_PAUSE_FIRST_S = 0.5
_PAUSE_MAX_S = 10.0


async def wait_for_topics(settings: Settings) -> dict[str, int]:
    """Waits until Kafka answers and has all topics a worker needs; tells once what it waits for, and when that ends.

    Where this client may not read the topics' settings (an ACL), that is told, and the worker goes on: whoever keeps
    the ACLs keeps the topics, and `pipeline topics create` checks them with the rights it needs.

    Returns:
        Partitions by topic.

    Raises:
        TopicError: the topics do not fit (`adapters.topics.check_worker_topics`): one line for each difference.
    """
    pause, told = _PAUSE_FIRST_S, ""
    while True:
        admin = AIOKafkaAdminClient(**client_options(settings.kafka))
        try:
            await admin.start()
            partitions = await partition_counts(admin)
            missing = [settings.topic(name) for name in _NEEDED if settings.topic(name) not in partitions]
            if not missing:
                for refused in await refused_by_brokers(admin, settings):
                    logger.warning("%s", refused)
                await check_worker_topics(admin, settings, partitions)
                return partitions
            problem = f"topics are missing: {', '.join(missing)}; `pipeline topics create` makes them"
        except TopicConfigsForbidden as error:
            logger.warning("%s; going on without that check", error)
            return partitions
        except (KafkaError, OSError) as error:
            problem = f"Kafka at {settings.kafka.bootstrap_servers} does not answer ({error})"
        finally:
            await admin.close()
        if problem != told:
            logger.warning("%s; waiting", problem)
            told = problem
        await asyncio.sleep(pause)
        pause = min(pause * 2, _PAUSE_MAX_S)

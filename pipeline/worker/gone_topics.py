"""A topic that is deleted while a worker reads it: the worker waits for it, as it does for one that was never made."""

from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import CommitFailedError, UnknownTopicOrPartitionError

Commit = Callable[..., Awaitable[None]]


def failing_where_gone(commit: Commit) -> Commit:
    """Makes aiokafka's commit fail at once where its topic is gone.

    Its own tries again ten times a second until the topic is back. The rebalance that takes the partitions away waits
    for that commit, the fetcher asks for their leaders 2,500 times a second meanwhile (half a core), and so does the
    end of the process, for 12 s.

    Args:
        commit: `GroupCoordinator._do_commit_offsets` of one coordinator.
    """

    async def once(*arguments: Any) -> None:
        try:
            await commit(*arguments)
        except UnknownTopicOrPartitionError as error:
            raise CommitFailedError(f"the topic is gone: {error}") from error

    return once


def gone_topics(consumer: AIOKafkaConsumer) -> tuple[str, ...]:
    """Topics that are subscribed to and not in Kafka, as of the consumer's last look."""
    known = consumer._client.cluster.topics(exclude_internal_topics=False)
    return tuple(sorted(consumer.subscription() - known))

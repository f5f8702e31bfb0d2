"""Commits and topics that are gone; Kafka's answers are scripted."""

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import CommitFailedError, KafkaError, RequestTimedOutError, UnknownTopicOrPartitionError

from pipeline.worker.gone_topics import failing_where_gone, gone_topics


@pytest.mark.parametrize(
    ("answer", "raised"),
    [
        (UnknownTopicOrPartitionError(), CommitFailedError),
        # What passes by itself is still aiokafka's to send again.
        (RequestTimedOutError(), RequestTimedOutError),
    ],
)
async def test_commit_to_a_gone_topic_is_not_sent_again(answer: KafkaError, raised: type[KafkaError]) -> None:
    """Of a topic that is gone a commit has failed for good; every other error stays what it is."""
    sent: list[tuple[Any, ...]] = []

    async def commit(*arguments: Any) -> None:
        sent.append(arguments)
        raise answer

    with pytest.raises(raised) as caught:
        await failing_where_gone(commit)("assignment", "offsets")
    assert caught.value.retriable is (raised is RequestTimedOutError)
    assert sent == [("assignment", "offsets")]


def test_gone_topics_are_those_that_kafka_does_not_know() -> None:
    """What is subscribed to and not in the cluster's metadata is gone; what others read is nobody's concern here."""
    cluster = SimpleNamespace(topics=lambda exclude_internal_topics: {"results", "here"})
    consumer: Any = SimpleNamespace(
        _client=SimpleNamespace(cluster=cluster), subscription=lambda: frozenset({"here", "b", "a"})
    )
    assert gone_topics(consumer) == ("a", "b")

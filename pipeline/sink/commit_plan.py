"""What the sink writes beside its offsets: where the batch that begins there ends.

The plan is committed before the insert. Whoever continues after a crash finds it and repeats exactly that range, with
the token it had, so ClickHouse drops what it already holds.
"""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import orjson
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupLoadInProgressError
from aiokafka.structs import TopicPartition


class Commit(NamedTuple):
    """A committed position.

    Attributes:
        offset: the first offset that is not in ClickHouse for certain.
        planned_end: the end of the batch that was begun there, if one was.
    """

    offset: int
    planned_end: int | None


def plan_metadata(planned_end: int) -> str:
    """The commit's metadata for a batch that ends before `planned_end`; far below Kafka's limit of 4,096 bytes."""
    return orjson.dumps({"planned_end": planned_end}).decode()


def planned_end_of(offset: int, metadata: str) -> int | None:
    """The end that a commit's metadata plans, or None; what others wrote there means no plan."""
    try:
        plan = orjson.loads(metadata)
    except orjson.JSONDecodeError:
        return None
    end = plan.get("planned_end") if isinstance(plan, dict) else None
    return end if isinstance(end, int) and end > offset else None


# Reads the commit of a partition of the group; None where there is none.
CommitReader = Callable[[TopicPartition], Awaitable[Commit | None]]


async def read_commit(options: dict[str, Any], group: str, partition: TopicPartition) -> Commit | None:
    """The group's commit for a partition, with its plan. The consumer's own `committed` hides the metadata.

    Raises:
        KafkaError: not reached, or refused.
    """
    admin = AIOKafkaAdminClient(**options)
    try:
        await admin.start()
        commits = await admin.list_consumer_group_offsets(group, partitions=[partition])
    finally:
        await admin.close()
    commit = commits.get(partition)
    if commit is None:
        # aiokafka 0.14 does not look at the answer's own error code. A coordinator that still loads the group answers
        # without any partition, where a group without a commit answers -1: taking one for the other would start over.
        raise GroupLoadInProgressError(f"the coordinator of group {group} does not know its commits yet")
    if commit.offset < 0:
        return None
    return Commit(commit.offset, planned_end_of(commit.offset, commit.metadata))

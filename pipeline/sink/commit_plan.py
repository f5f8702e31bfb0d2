"""The group's commits, with what the sink has written beside them (`core/sink_plan.py`)."""

from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupLoadInProgressError
from aiokafka.structs import TopicPartition

from pipeline.core.sink_plan import StoredCommit

# Reads the commit of a partition of the group; None where there is none.
CommitReader = Callable[[TopicPartition], Awaitable[StoredCommit | None]]


async def read_commit(options: dict[str, Any], group: str, partition: TopicPartition) -> StoredCommit | None:
    """The group's commit for a partition, with its note. The consumer's own `committed` hides the metadata.

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
    return None if commit.offset < 0 else StoredCommit.of(commit.offset, commit.metadata)

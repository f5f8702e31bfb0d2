"""`doctor`'s look at the inference log: are its rows single, complete, and counted by the view?"""

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config import Settings
    from pipeline.sink.audit import Finding
    from pipeline.stack.doctor import Check


def check_log(settings: "Settings") -> "list[Check]":
    """The checks of the log's last hour; none where Kafka or ClickHouse is not known."""
    from pipeline.stack.doctor import Check

    if not settings.kafka.bootstrap_servers or not settings.clickhouse.url:
        return []
    return [Check(one.name, not one.mend, one.detail, one.mend) for one in asyncio.run(_audit(settings))]


async def _audit(settings: "Settings") -> "list[Finding]":
    from aiokafka.errors import KafkaError

    from pipeline.adapters.clickhouse import ClickHouseEventStore
    from pipeline.adapters.kafka import client_options
    from pipeline.errors import PipelineError
    from pipeline.sink.audit import Finding, audit
    from pipeline.sink.run import SINK_GROUP

    try:
        async with ClickHouseEventStore(settings.clickhouse) as store:
            return await audit(store, client_options(settings.kafka), SINK_GROUP)
    except (PipelineError, KafkaError) as error:
        return [Finding("inference log", f"not looked at: {error}"[:300], "mend what is named above, then ask again")]

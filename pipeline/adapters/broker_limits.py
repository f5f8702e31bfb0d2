"""Whether the brokers take records as large as the settings allow: one that does not cuts connections, silently."""

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from pipeline.config import MIB, Settings

_SETTING = "socket.request.max.bytes"
# What a broker takes that says nothing.
_DEFAULT_BYTES = 100 * MIB
# A produce request around its one record.
_REQUEST_OVERHEAD_BYTES = MIB


async def refused_by_brokers(admin: AIOKafkaAdminClient, settings: Settings) -> list[str]:
    """What each broker would refuse that the settings allow: broker, setting, value, what is needed.

    Asks nobody where a broker's default is enough: with `limits.record_bytes` of up to 32 MiB.

    Raises:
        KafkaError: Kafka does not answer.
    """
    needed = settings.limits.event_record_bytes + _REQUEST_OVERHEAD_BYTES
    if needed <= _DEFAULT_BYTES:
        return []
    nodes = [broker["node_id"] for broker in (await admin.describe_cluster())["brokers"]]
    resources = [ConfigResource(ConfigResourceType.BROKER, str(node), {_SETTING: ""}) for node in nodes]
    return [
        f"broker {node}: {_SETTING} is {entry[1]}, event records of up to {settings.limits.event_record_bytes} bytes "
        f"(3 x PIPELINE_LIMITS__RECORD_BYTES + 1 MiB) need {needed}: a worker that writes a larger one stops committing"
        for response in await admin.describe_configs(resources)
        for _, _, _, node, entries in response.resources
        for entry in entries
        if entry[0] == _SETTING and int(entry[1]) < needed
    ]

"""The pipeline's topics: what they must be, making them, and checking the ones that are there.

Requests and results belong together: a result goes to the partition with its request's number, so results may have
more partitions than requests, never fewer. Nothing that exists is changed unless that is asked for.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import CommitFailedError, KafkaConnectionError, KafkaError, for_code

from pipeline.adapters.kafka import client_options
from pipeline.config import MIB, Settings
from pipeline.errors import TopicError

# Around a record's value: 61 bytes of batch header, a key of 32, our own headers under 1 kB. Other producers' headers
# (traces, signatures) share the rest.
RECORD_OVERHEAD_BYTES = 64 * 1024

_DAY_MS = 86_400_000
_REQUESTS_RETENTION_MS = 7 * _DAY_MS
# Requests' own, plus the longest `timeout_ms` (7 days), plus a day for segments that are not rolled at once: the
# results are the ledger of what was answered, and must outlive every request that may still be read.
_RESULTS_RETENTION_MS = _REQUESTS_RETENTION_MS + 8 * _DAY_MS
_EVENTS_RETENTION_MS = 14 * _DAY_MS  # how long ClickHouse may be down without a lost row
_DEAD_LETTER_RETENTION_MS = 30 * _DAY_MS
_TOPIC_ALREADY_EXISTS = 36
# DescribeConfigs' source of a value that was set on the topic itself.
_DYNAMIC_TOPIC_CONFIG = 1


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """What one topic must be: its full name, its partitions, its settings (Kafka's names and texts)."""

    name: str
    partitions: int
    configs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ConfigDifference:
    """A setting of an existing topic that does not fit."""

    topic: str
    setting: str
    found: str
    expected: str


@dataclass(frozen=True, slots=True)
class TopicsReport:
    """What `create_topics` found and did: `differences` stay, `altered` were changed because that was asked for.

    `started_partitions` are those of requests for which the worker's group now has its first commit, 0.
    """

    created: tuple[str, ...]
    existing: tuple[str, ...]
    differences: tuple[ConfigDifference, ...]
    altered: tuple[ConfigDifference, ...]
    started_partitions: tuple[int, ...]


def plan_topics(settings: Settings, request_partitions: int, replicas: int) -> tuple[TopicPlan, ...]:
    """What every topic must be.

    `request_partitions` are those of the requests topic as it is or will be, `replicas` the replication factor.
    """
    record = settings.limits.record_bytes + RECORD_OVERHEAD_BYTES
    events = settings.limits.event_record_bytes + RECORD_OVERHEAD_BYTES
    # A dead letter has the original's bytes and headers and some of its own; the sink's come from the events topic.
    dead_letter = events + RECORD_OVERHEAD_BYTES

    def plan(name: str, partitions: int, size: int, retention_ms: int | None, **more: str) -> TopicPlan:
        configs = {
            "max.message.bytes": str(size),
            "cleanup.policy": "compact" if retention_ms is None else "delete",
            # Two of three replicas must have a record before anybody is told that it is safe.
            "min.insync.replicas": "2" if replicas >= 3 else "1",
            "unclean.leader.election.enable": "false",
            **({} if retention_ms is None else {"retention.ms": str(retention_ms)}),
            **{setting.replace("_", "."): text for setting, text in more.items()},
        }
        return TopicPlan(settings.topic(name), partitions, configs)

    kafka = settings.kafka
    return (
        # The broker's time: deadlines and queue times must not depend on producers' clocks.
        plan("requests", request_partitions, record, _REQUESTS_RETENTION_MS, message_timestamp_type="LogAppendTime"),
        plan("results", request_partitions, record, _RESULTS_RETENTION_MS),
        plan("chunks", request_partitions, record, _DAY_MS),
        plan("replies", kafka.reply_partitions, record, _DAY_MS),
        plan("events", kafka.event_partitions, events, _EVENTS_RETENTION_MS),
        # One partition: a reader of all models follows one order.
        plan("models", 1, MIB, None),
        plan("dead-letter", kafka.event_partitions, dead_letter, _DEAD_LETTER_RETENTION_MS),
    )


async def create_topics(settings: Settings, *, alter: bool = False, timeout_s: float = 30.0) -> TopicsReport:
    """Makes the topics that are missing, checks the others, and gives the worker's group its first commit.

    With `alter`, settings of existing topics that do not fit are changed; otherwise they are only reported.
    `timeout_s` is for every step together.

    Raises:
        TopicError: Kafka does not answer or refuses, or existing topics do not fit each other.
    """
    admin = AIOKafkaAdminClient(**client_options(settings.kafka), request_timeout_ms=int(timeout_s * 1000))
    try:
        async with asyncio.timeout(timeout_s):
            await admin.start()
            return await _create(admin, settings, alter)
    except TimeoutError:
        raise TopicError(f"Kafka at {settings.kafka.bootstrap_servers} gave no answer within {timeout_s:g} s") from None
    except KafkaConnectionError as error:
        raise TopicError(f"Kafka at {settings.kafka.bootstrap_servers} does not answer") from error
    except (KafkaError, OSError) as error:
        raise TopicError(f"Kafka at {settings.kafka.bootstrap_servers}: {error}") from error
    finally:
        await admin.close()


async def _create(admin: AIOKafkaAdminClient, settings: Settings, alter: bool) -> TopicsReport:
    # All topics are listed: asking for one by name makes it, on brokers that create topics by themselves.
    partitions = {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics()}
    brokers = len((await admin.describe_cluster())["brokers"])
    requests = settings.topic("requests")
    replicas = settings.kafka.replication_factor or min(3, brokers)
    plans = plan_topics(settings, partitions.get(requests, settings.kafka.partitions), replicas)
    check_partitions(partitions, requests, settings.topic("results"), settings.topic("chunks"))
    existing = [plan for plan in plans if plan.name in partitions]
    missing = [plan for plan in plans if plan.name not in partitions]
    await _make(admin, missing, replicas)
    await _until_led(admin, plans)
    found = await _configs(admin, [plan.name for plan in existing])
    texts = {name: {setting: text for setting, (text, _) in configs.items()} for name, configs in found.items()}
    differences = find_differences(existing, texts, settings)
    if alter and differences:
        await _alter(admin, found, differences)
    started = await _commit_group_start(
        admin, settings, [TopicPartition(requests, n) for n in range(plans[0].partitions)]
    )
    return TopicsReport(
        created=tuple(plan.name for plan in missing),
        existing=tuple(plan.name for plan in existing),
        differences=() if alter else differences,
        altered=differences if alter else (),
        started_partitions=started,
    )


def check_partitions(partitions: Mapping[str, int], requests: str, *followers: str) -> None:
    """Checks that `followers`, whose records go to their request's partition number, have as many partitions.

    Raises:
        TopicError: one that exists has fewer than `requests`; the message says what to do.
    """
    wanted = partitions.get(requests, 0)
    for name in followers:
        if name in partitions and partitions[name] < wanted:
            raise TopicError(
                f"topic {name} has {partitions[name]} partitions and {requests} has {wanted}: a record there goes to "
                f"its request's partition number; grow {name} to {wanted} partitions first"
            )


async def _make(admin: AIOKafkaAdminClient, plans: Sequence[TopicPlan], replicas: int) -> None:
    if not plans:
        return
    wanted = [NewTopic(plan.name, plan.partitions, replicas, topic_configs=dict(plan.configs)) for plan in plans]
    response = await admin.create_topics(wanted)
    for name, code, *message in response.topic_errors:
        # One that somebody else made in between is as good as ours, and checked on the next call.
        if code not in {0, _TOPIC_ALREADY_EXISTS}:
            reason = (message[0] if message else None) or for_code(code).description
            raise TopicError(f"topic {name} cannot be made: {reason}")


async def _until_led(admin: AIOKafkaAdminClient, plans: Sequence[TopicPlan]) -> None:
    """Returns once every partition has a leader: whatever comes next needs one."""
    names = {plan.name for plan in plans}
    while True:
        topics = {topic["topic"]: topic for topic in await admin.describe_topics() if topic["topic"] in names}
        leaders = [partition["leader"] for topic in topics.values() for partition in topic["partitions"]]
        if len(topics) == len(names) and min(leaders) >= 0:
            return
        # A broker tells the others within milliseconds; the caller's limit ends this.
        await asyncio.sleep(0.05)


# A topic's settings by name: text, and whether it was set on the topic itself rather than inherited from the broker.
_Configs = Mapping[str, tuple[str, bool]]


async def _configs(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, _Configs]:
    found: dict[str, _Configs] = {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    for answer in await admin.describe_configs(resources) if resources else ():
        for code, message, _kind, name, entries in answer.resources:
            if code:
                raise TopicError(f"the settings of topic {name} cannot be read: {message or for_code(code).__name__}")
            found[name] = {entry[0]: (entry[1] or "", entry[3] == _DYNAMIC_TOPIC_CONFIG) for entry in entries}
    return found


def find_differences(
    plans: Sequence[TopicPlan], found: Mapping[str, Mapping[str, str]], settings: Settings
) -> tuple[ConfigDifference, ...]:
    """The settings of existing topics that do not fit their plans; a larger limit or a longer retention does."""
    differences: list[ConfigDifference] = []
    kept_ms = int(found.get(settings.topic("requests"), {}).get("retention.ms", _REQUESTS_RETENTION_MS))
    for plan in plans:
        for setting in ("max.message.bytes", "message.timestamp.type", "cleanup.policy", "min.insync.replicas"):
            expected = plan.configs.get(setting)
            text = found[plan.name].get(setting, "")
            if expected is None or text == expected:
                continue
            if expected.isdigit() and text.isdigit() and int(text) >= int(expected):
                continue
            differences.append(ConfigDifference(plan.name, setting, text, expected))
        if plan.name == settings.topic("results"):
            differences += _retention_difference(plan.name, int(found[plan.name].get("retention.ms", -1)), kept_ms)
    return tuple(differences)


def _retention_difference(results: str, found_ms: int, requests_ms: int) -> list[ConfigDifference]:
    """Results must be kept at least as long as requests; -1 is for ever."""
    if found_ms == -1 or (requests_ms != -1 and found_ms >= requests_ms):
        return []
    expected_ms = -1 if requests_ms == -1 else max(requests_ms + 8 * _DAY_MS, _RESULTS_RETENTION_MS)
    return [ConfigDifference(results, "retention.ms", str(found_ms), str(expected_ms))]


async def _alter(
    admin: AIOKafkaAdminClient, found: Mapping[str, _Configs], differences: Sequence[ConfigDifference]
) -> None:
    wanted: dict[str, dict[str, str]] = {}
    for difference in differences:
        # AlterConfigs replaces a topic's own settings as a whole: the others go along.
        own = {setting: text for setting, (text, is_own) in found[difference.topic].items() if is_own}
        wanted.setdefault(difference.topic, own)[difference.setting] = difference.expected
    resources = [ConfigResource(ConfigResourceType.TOPIC, name, configs) for name, configs in wanted.items()]
    for answer in await admin.alter_configs(resources):
        for code, message, _kind, name in answer.resources:
            if code:
                raise TopicError(f"the settings of topic {name} cannot be changed: {message}")


async def _commit_group_start(
    admin: AIOKafkaAdminClient, settings: Settings, partitions: Sequence[TopicPartition]
) -> tuple[int, ...]:
    """Gives the worker's group the offset 0 where it has no commit and the log still starts at 0; says where.

    Without it a worker's first start cannot tell "nothing was read yet" from "the commits are lost". Nothing is done
    while the group has members: they look after their commits themselves.
    """
    committed = await _committed(admin, settings.worker.group, partitions)
    unread = [partition for partition in partitions if committed[partition] < 0]
    if not unread:
        return ()
    consumer = AIOKafkaConsumer(
        **client_options(settings.kafka), group_id=settings.worker.group, enable_auto_commit=False
    )
    # Assigned by hand, so it never joins the group: the broker takes such a commit only while the group is empty.
    consumer.assign(unread)
    await consumer.start()
    try:
        starts = await consumer.beginning_offsets(unread)
        fresh = {partition: 0 for partition in unread if starts[partition] == 0}
        if fresh:
            await consumer.commit(fresh)
    except CommitFailedError:
        return ()
    finally:
        await consumer.stop()
    return tuple(sorted(partition.partition for partition in fresh))


async def _committed(
    admin: AIOKafkaAdminClient, group: str, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, int]:
    """The group's offsets; -1 where it has none."""
    while True:
        try:
            found = await admin.list_consumer_group_offsets(group, partitions=list(partitions))
        except KafkaError as error:
            # A new cluster makes its offsets topic on this very question; the caller's limit ends this.
            if not error.retriable:
                raise
            found = {}
        # The client overlooks the answer's own error ("still loading"), which comes without partitions.
        if len(found) == len(partitions):
            return {partition: place.offset for partition, place in found.items()}
        await asyncio.sleep(0.1)

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
from aiokafka.errors import CommitFailedError, KafkaError, for_code

from pipeline.adapters.kafka import answered_in_time, client_options
from pipeline.config import MIB, Settings
from pipeline.core.webhook_schedule import tier_name
from pipeline.errors import TopicError

# Around a record's value: 61 bytes of batch header, a key of 32, our own headers under 1 kB. Other producers' headers
# (traces, signatures) share the rest.
RECORD_OVERHEAD_BYTES = 64 * 1024

_DAY_MS = 86_400_000
_REQUESTS_RETENTION_MS = 7 * _DAY_MS
# Results are the ledger of what was answered, and must outlive every request that may still be read: kept as long as
# requests, plus the longest `timeout_ms`. Ours a day longer, for segments of requests that are not rolled at once.
_TIMEOUT_MAX_MS = 7 * _DAY_MS
_RESULTS_RETENTION_MS = _REQUESTS_RETENTION_MS + _TIMEOUT_MAX_MS + _DAY_MS
_EVENTS_RETENTION_MS = 14 * _DAY_MS  # how long ClickHouse may be down without a lost row
_DEAD_LETTER_RETENTION_MS = 30 * _DAY_MS
_WEBHOOKS_RETENTION_MS = 7 * _DAY_MS  # how long nobody may deliver without a lost callback; a stay in a tier is hours
# A worker reads commands as they come; one that was paused for longer finds that it has missed some.
_CONTROL_RETENTION_MS = 3_600_000
_FOREVER = "-1"
_TOPIC_AUTHORIZATION_FAILED = 29
_TOPIC_ALREADY_EXISTS = 36
# DescribeConfigs' source of a value that was set on the topic itself.
_DYNAMIC_TOPIC_CONFIG = 1
# What a plan fixes, except `retention.ms`: how long is the owner's choice, within the rule for results.
_CHECKED = ("max.message.bytes", "message.timestamp.type", "cleanup.policy", "retention.bytes", "min.insync.replicas")
# What a worker does not start without: an answer that the ledger loses is given again, one that does not fit ends the
# worker that has it, and with other times deadlines follow the producers' clocks.
_NEEDED_BY_WORKERS = {
    "requests": {"message.timestamp.type", "cleanup.policy", "retention.bytes"},
    "results": {"max.message.bytes", "cleanup.policy", "retention.bytes", "retention.ms"},
}


class TopicConfigsForbidden(TopicError):  # noqa: N818 - a state, not a mistake
    """This client may not read topics' settings (Kafka's ACL operation DescribeConfigs)."""


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """What one topic must be: its full name, its partitions, its settings (Kafka's names and texts)."""

    name: str
    partitions: int
    configs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ConfigDifference:
    """A setting of an existing topic that does not fit; `stops_workers` where they refuse to start on it."""

    topic: str
    setting: str
    found: str
    expected: str
    stops_workers: bool = False

    def __str__(self) -> str:
        return (
            f"{self.topic}: {self.setting} is {self.found or 'not set'}, expected {self.expected} "
            "(`pipeline topics create --alter` changes it)"
        )


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


def webhook_topics(settings: Settings) -> dict[str, float]:
    """The topics of callbacks without their prefix, each with the seconds that records wait in it: 0, or a tier's."""
    return {"webhooks": 0.0} | {f"webhooks.{tier_name(tier_s)}": tier_s for tier_s in settings.webhooks.tiers_s}


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
        plan(
            "requests",
            request_partitions,
            record,
            _REQUESTS_RETENTION_MS,
            message_timestamp_type="LogAppendTime",
            retention_bytes=_FOREVER,
        ),
        # Cut by size, the ledger would forget answers whose requests are still read. By the broker's time an answer
        # never stands before its request, whatever the worker's clock says.
        plan(
            "results",
            request_partitions,
            record,
            _RESULTS_RETENTION_MS,
            message_timestamp_type="LogAppendTime",
            retention_bytes=_FOREVER,
        ),
        plan("chunks", request_partitions, record, _DAY_MS),
        plan("replies", kafka.reply_partitions, record, _DAY_MS),
        plan("events", kafka.event_partitions, events, _EVENTS_RETENTION_MS),
        # One partition: a reader of all of it follows one order. Keys are API keys, as digests.
        *(plan(name, 1, MIB, None) for name in ("models", "keys")),
        plan("dead-letter", kafka.event_partitions, dead_letter, _DEAD_LETTER_RETENTION_MS),
        *(
            # Cut by size, a tier would lose callbacks that wait.
            plan(name, request_partitions, record, _WEBHOOKS_RETENTION_MS, retention_bytes=_FOREVER)
            for name in webhook_topics(settings)
        ),
        # A segment that is written to is not deleted: it is closed as often as its records' time is up.
        plan(
            "control",
            1,
            MIB,
            _CONTROL_RETENTION_MS,
            message_timestamp_type="LogAppendTime",
            segment_ms=str(_CONTROL_RETENTION_MS),
        ),
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
        async with answered_in_time(settings.kafka.bootstrap_servers, timeout_s):
            await admin.start()
            return await _create(admin, settings, alter)
    finally:
        await admin.close()


async def _create(admin: AIOKafkaAdminClient, settings: Settings, alter: bool) -> TopicsReport:
    partitions = await partition_counts(admin)
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
    differences = find_differences(existing, _texts(found), settings)
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


async def partition_counts(admin: AIOKafkaAdminClient) -> dict[str, int]:
    """Partitions by topic, of every topic this client may see."""
    # All topics are listed: asking for one by name makes it, on brokers that create topics by themselves.
    return {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics()}


async def check_worker_topics(admin: AIOKafkaAdminClient, settings: Settings, partitions: Mapping[str, int]) -> None:
    """Checks that a worker can keep its promises on the topics as they are; `partitions` are theirs, by name.

    Raises:
        TopicError: they cannot; one line for each difference: topic, setting, found, expected, the command that mends.
        TopicConfigsForbidden: their settings cannot be read; everything else fits.
        KafkaError: Kafka does not answer.
    """
    requests, results = settings.topic("requests"), settings.topic("results")
    check_partitions(partitions, requests, results)
    # How many replicas must confirm is not judged here, so their number does not matter.
    plans = [plan for plan in plan_topics(settings, partitions[requests], 1) if plan.name in {requests, results}]
    found = await _configs(admin, [plan.name for plan in plans])
    differences = find_differences(plans, _texts(found), settings)
    if refusals := [str(difference) for difference in differences if difference.stops_workers]:
        raise TopicError("\n".join(refusals))


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
            _check_readable(name, code, message)
            found[name] = {entry[0]: (entry[1] or "", entry[3] == _DYNAMIC_TOPIC_CONFIG) for entry in entries}
    return found


def _check_readable(topic: str, code: int, message: str | None) -> None:
    if not code:
        return
    error = for_code(code)
    # A topic that a broker has not heard of yet is one to ask for again.
    if error.retriable:
        raise error(f"the settings of topic {topic}: {message or error.description}")
    kind = TopicConfigsForbidden if code == _TOPIC_AUTHORIZATION_FAILED else TopicError
    raise kind(f"the settings of topic {topic} cannot be read: {message or error.description}")


def _texts(found: Mapping[str, _Configs]) -> dict[str, dict[str, str]]:
    return {name: {setting: text for setting, (text, _) in configs.items()} for name, configs in found.items()}


def find_differences(
    plans: Sequence[TopicPlan], found: Mapping[str, Mapping[str, str]], settings: Settings
) -> tuple[ConfigDifference, ...]:
    """The settings of existing topics that do not fit their plans; a larger limit or a longer retention does.

    `found` are the settings in force by topic, the broker's defaults among them.
    """
    differences: list[ConfigDifference] = []
    requests = found.get(settings.topic("requests"), {})
    for plan in plans:
        name = plan.name.removeprefix(settings.kafka.topic_prefix)
        expected = {setting: plan.configs[setting] for setting in _CHECKED if setting in plan.configs}
        if name == "results":
            expected |= _expected_of_results(expected["max.message.bytes"], requests)
        differences += [
            ConfigDifference(plan.name, setting, text, wanted, setting in _NEEDED_BY_WORKERS.get(name, ()))
            for setting, wanted in expected.items()
            if not _fits(setting, text := found[plan.name].get(setting, ""), wanted)
        ]
    return tuple(differences)


def _expected_of_results(bytes_max: str, requests: Mapping[str, str]) -> dict[str, str]:
    """What the settings of requests, as they are, ask of results: to hold as large a record, and to outlive it."""
    kept_ms = requests.get("retention.ms", str(_REQUESTS_RETENTION_MS))
    return {
        "max.message.bytes": max(bytes_max, requests.get("max.message.bytes", "0"), key=int),
        "retention.ms": _FOREVER if kept_ms == _FOREVER else str(int(kept_ms) + _TIMEOUT_MAX_MS),
    }


def _fits(setting: str, found: str, expected: str) -> bool:
    if found == expected or (setting == "retention.ms" and found == _FOREVER):
        return True
    return found.isdigit() and expected.isdigit() and int(found) >= int(expected)


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

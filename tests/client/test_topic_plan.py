"""What the topics must be, and how existing ones are judged; no Kafka."""

import pytest

from pipeline.adapters.topics import (
    RECORD_OVERHEAD_BYTES,
    ConfigDifference,
    check_partitions,
    find_differences,
    plan_topics,
)
from pipeline.config import Settings
from pipeline.errors import TopicError

SETTINGS = Settings()
PLANS = {plan.name.removeprefix("inference."): plan for plan in plan_topics(SETTINGS, 6, replicas=3)}


def test_every_topic_of_the_contract_is_planned() -> None:
    """The topics that the components use are made, those of callbacks with their delay tiers."""
    named = {
        "requests",
        "results",
        "chunks",
        "replies",
        "events",
        "models",
        "dead-letter",
        "control",
        "webhooks",
        "keys",
    }
    tiers = {f"webhooks.{name}" for name in ("5s", "30s", "5m", "30m", "2h", "6h")}
    assert PLANS.keys() - tiers == named
    assert tiers <= PLANS.keys()


def test_followers_have_the_partitions_of_requests() -> None:
    """A record whose place is its request's partition number finds that partition."""
    assert [PLANS[name].partitions for name in ("requests", "results", "chunks")] == [6, 6, 6]


def test_message_sizes_cover_their_records() -> None:
    """A record at its limit fits with its headers; a dead letter holds whatever the other topics hold."""
    sizes = {name: int(plan.configs["max.message.bytes"]) for name, plan in PLANS.items()}
    record = SETTINGS.limits.record_bytes + RECORD_OVERHEAD_BYTES
    assert {sizes[name] for name in ("requests", "results", "chunks", "replies")} == {record}
    assert sizes["events"] >= SETTINGS.limits.event_record_bytes
    assert sizes["dead-letter"] > max(sizes["requests"], sizes["events"])


def test_results_outlive_requests_and_their_deadlines() -> None:
    """A request that can still be read finds its result: retention of results covers the longest timeout besides."""
    kept = {name: int(PLANS[name].configs["retention.ms"]) for name in ("requests", "results")}
    longest_timeout_ms = 7 * 86_400_000
    assert kept["results"] >= kept["requests"] + longest_timeout_ms


def test_requests_have_the_brokers_time() -> None:
    """Deadlines and queue times do not depend on producers' clocks."""
    assert PLANS["requests"].configs["message.timestamp.type"] == "LogAppendTime"


def test_only_tables_are_compacted() -> None:
    """Nothing but models and API keys may lose records by key."""
    policies = {name: plan.configs["cleanup.policy"] for name, plan in PLANS.items()}
    assert (policies.pop("models"), policies.pop("keys")) == ("compact", "compact")
    assert set(policies.values()) == {"delete"}


@pytest.mark.parametrize(("replicas", "in_sync"), [(1, "1"), (2, "1"), (3, "2"), (5, "2")])
def test_replicas_decide_how_many_must_confirm(replicas: int, in_sync: str) -> None:
    """With three replicas two must have a record before it counts; with fewer the cluster must go on with one."""
    plans = plan_topics(SETTINGS, 1, replicas)
    assert {plan.configs["min.insync.replicas"] for plan in plans} == {in_sync}


def test_fewer_results_than_requests_are_refused() -> None:
    """The message names both topics, both counts, and what to do."""
    with pytest.raises(TopicError, match=r"results has 2 partitions and requests has 4.*grow results to 4"):
        check_partitions({"requests": 4, "results": 2}, "requests", "results")


def test_more_results_than_requests_are_fine() -> None:
    """Results are grown first, so for a while they have more."""
    check_partitions({"requests": 4, "results": 8}, "requests", "results", "not-there")


def differences(**changed: str) -> list[ConfigDifference]:
    """What is found where some settings differ: `requests_retention_ms="5"`; an empty text is one that is not set."""
    found = {name: dict(PLANS[name].configs) for name in ("requests", "results")}
    for name, text in changed.items():
        topic, _, setting = name.partition("_")
        found[topic][setting.replace("_", ".")] = text
    plans = [PLANS[name] for name in found]
    return list(find_differences(plans, {PLANS[name].name: configs for name, configs in found.items()}, SETTINGS))


def test_topics_as_planned_do_not_differ() -> None:
    """What `create_topics` makes fits, with the broker's answer to every setting."""
    assert differences() == []


def test_differences_are_only_what_does_not_fit() -> None:
    """A larger limit is no difference; a smaller one, another time or another policy is."""
    size = PLANS["requests"].configs["max.message.bytes"]
    requests = "inference.requests"
    assert differences(requests_message_timestamp_type="CreateTime", results_max_message_bytes="99999999") == [
        ConfigDifference(requests, "message.timestamp.type", "CreateTime", "LogAppendTime", stops_workers=True),
    ]
    assert differences(requests_max_message_bytes="1000") == [
        ConfigDifference(requests, "max.message.bytes", "1000", size),
    ]
    assert differences(requests_min_insync_replicas="1") == [
        ConfigDifference(requests, "min.insync.replicas", "1", "2"),
    ]


DAY_MS = 86_400_000


@pytest.mark.parametrize(
    ("requests_ms", "results_ms", "expected"),
    [
        ("1000", str(7 * DAY_MS + 1000), None),
        ("1000", str(7 * DAY_MS + 999), str(7 * DAY_MS + 1000)),
        ("-1", str(99 * DAY_MS), "-1"),
        ("-1", "-1", None),
        ("5", "-1", None),
        (str(7 * DAY_MS), "", str(14 * DAY_MS)),
    ],
)
def test_results_outlive_requests_as_they_are(requests_ms: str, results_ms: str, expected: str | None) -> None:
    """The ledger is kept as long as what may still be asked, and the longest timeout; -1 is for ever."""
    found = differences(requests_retention_ms=requests_ms, results_retention_ms=results_ms)
    wanted = ConfigDifference("inference.results", "retention.ms", results_ms, expected or "", stops_workers=True)
    assert found == ([] if expected is None else [wanted])


def test_results_hold_what_requests_hold() -> None:
    """A results topic as planned is too small beside larger requests."""
    size = PLANS["results"].configs["max.message.bytes"]
    assert differences(requests_max_message_bytes="99999999") == [
        ConfigDifference("inference.results", "max.message.bytes", size, "99999999", stops_workers=True),
    ]


@pytest.mark.parametrize("topic", ["requests", "results"])
@pytest.mark.parametrize(
    ("setting", "text", "expected"),
    [
        ("cleanup.policy", "compact", "delete"),
        ("cleanup.policy", "compact,delete", "delete"),
        ("retention.bytes", "1073741824", "-1"),
    ],
)
def test_ledger_is_cut_by_time_alone(topic: str, setting: str, text: str, expected: str) -> None:
    """Neither compaction nor a limit in bytes may take a request or an answer out of the log."""
    name = f"{topic}_{setting.replace('.', '_')}"
    assert differences(**{name: text}) == [
        ConfigDifference(f"inference.{topic}", setting, text, expected, stops_workers=True),
    ]


def test_difference_says_what_mends_it() -> None:
    """One line: topic, setting, found, expected, command."""
    (difference,) = differences(results_cleanup_policy="")
    assert str(difference) == (
        "inference.results: cleanup.policy is not set, expected delete (`pipeline topics create --alter` changes it)"
    )

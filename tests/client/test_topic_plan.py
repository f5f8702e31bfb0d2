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
    """The topics that the components use are made, webhooks not yet."""
    assert set(PLANS) == {"requests", "results", "chunks", "replies", "events", "models", "dead-letter"}


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


def test_only_models_are_compacted() -> None:
    """Nothing but the models topic may lose records by key."""
    policies = {name: plan.configs["cleanup.policy"] for name, plan in PLANS.items()}
    assert policies.pop("models") == "compact"
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


def test_differences_are_only_what_does_not_fit() -> None:
    """A larger limit is no difference; a smaller one, another time or another policy is."""
    plan = PLANS["requests"]
    size = plan.configs["max.message.bytes"]
    found = dict(plan.configs) | {"max.message.bytes": "99999999", "message.timestamp.type": "CreateTime"}
    assert find_differences([plan], {plan.name: found}, SETTINGS) == (
        ConfigDifference(plan.name, "message.timestamp.type", "CreateTime", "LogAppendTime"),
    )
    small = dict(plan.configs) | {"max.message.bytes": "1000"}
    assert find_differences([plan], {plan.name: small}, SETTINGS) == (
        ConfigDifference(plan.name, "max.message.bytes", "1000", size),
    )


@pytest.mark.parametrize(
    ("requests_ms", "results_ms", "fits"),
    [("1000", "999", False), ("1000", "1000", True), ("-1", "5", False), ("5", "-1", True)],
)
def test_results_kept_shorter_than_requests_differ(requests_ms: str, results_ms: str, fits: bool) -> None:
    """The ledger of answers must not be shorter than what may still be asked; -1 is for ever."""
    plans = [PLANS["requests"], PLANS["results"]]
    found = {plan.name: dict(plan.configs) for plan in plans}
    found[plans[0].name]["retention.ms"] = requests_ms
    found[plans[1].name]["retention.ms"] = results_ms
    assert (find_differences(plans, found, SETTINGS) == ()) is fits

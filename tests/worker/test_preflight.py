"""What a worker checks before it takes anything; Kafka's answers are scripted."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.adapters.topics import plan_topics
from pipeline.config import Settings
from pipeline.errors import TopicError
from pipeline.worker import preflight
from pipeline.worker.preflight import wait_for_topics

SETTINGS = Settings(kafka={"bootstrap_servers": "unused:9092"})
CONFIGS = {plan.name: dict(plan.configs) for plan in plan_topics(SETTINGS, 4, replicas=1)}
_SET_ON_THE_TOPIC = 1
_TOPIC_KIND = 2
_UNKNOWN_TOPIC, _AUTHORIZATION_FAILED, _INVALID_REQUEST = 3, 29, 42


class ScriptedAdmin:
    """An admin client that sees all topics with their planned settings, but for what a test changes.

    Args:
        changed: settings that differ, by topic.
        codes: Kafka's error codes of the answers to DescribeConfigs, one after the other; then none.
    """

    def __init__(self, changed: dict[str, dict[str, str]], codes: list[int]) -> None:
        self.closed = 0
        self._configs = {name: configs | changed.get(name, {}) for name, configs in CONFIGS.items()}
        self._codes = codes

    async def start(self) -> None:
        """Nothing to connect."""

    async def close(self) -> None:
        """Counted."""
        self.closed += 1

    async def describe_topics(self) -> list[dict[str, Any]]:
        """Every topic, with four partitions."""
        return [{"topic": name, "partitions": [0] * 4} for name in self._configs]

    async def describe_configs(self, resources: list[Any]) -> list[Any]:
        """The settings of the topics that are asked for, or an error for each."""
        code = self._codes.pop(0) if self._codes else 0
        answers = []
        for resource in resources:
            own = self._configs[resource.name].items()
            entries = [] if code else [(setting, text, False, _SET_ON_THE_TOPIC, False) for setting, text in own]
            answers.append((code, "as the test says" if code else None, _TOPIC_KIND, resource.name, entries))
        return [SimpleNamespace(resources=answers)]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a scripted admin in the place of Kafka's."""

    def use(*codes: int, **changed: dict[str, str]) -> ScriptedAdmin:
        admin = ScriptedAdmin({f"inference.{name}": configs for name, configs in changed.items()}, list(codes))
        monkeypatch.setattr(preflight, "AIOKafkaAdminClient", lambda **_options: admin)
        monkeypatch.setattr(preflight, "_PAUSE_FIRST_S", 0.0)
        return admin

    return use


async def test_fitting_topics_are_taken(script: Any) -> None:
    """Topics as planned: their partitions are the answer, and the connection is closed."""
    admin = script()
    assert await wait_for_topics(SETTINGS) == dict.fromkeys(CONFIGS, 4)
    assert admin.closed == 1


async def test_every_difference_is_a_line(script: Any) -> None:
    """All that stops a worker is named at once, each with the command that mends it; what does not is left out."""
    admin = script(
        requests={"message.timestamp.type": "CreateTime", "min.insync.replicas": "0"},
        results={"retention.ms": "5", "cleanup.policy": "compact"},
        events={"cleanup.policy": "compact"},
    )
    with pytest.raises(TopicError) as raised:
        await wait_for_topics(SETTINGS)
    lines = str(raised.value).split("\n")
    assert [line.split(" is ")[0] for line in lines] == [
        "inference.requests: message.timestamp.type",
        "inference.results: cleanup.policy",
        "inference.results: retention.ms",
    ]
    assert all(line.endswith("(`pipeline topics create --alter` changes it)") for line in lines)
    assert admin.closed == 1


async def test_hidden_settings_are_a_warning(script: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A worker without the right to read settings says so once, and starts."""
    script(_AUTHORIZATION_FAILED, results={"cleanup.policy": "compact"})
    with caplog.at_level(logging.WARNING):
        assert await wait_for_topics(SETTINGS) == dict.fromkeys(CONFIGS, 4)
    assert len(caplog.messages) == 1
    assert "settings of topic inference.requests cannot be read: as the test says" in caplog.messages[0]


async def test_topics_that_a_broker_does_not_know_yet_are_waited_for(
    script: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A new topic is not known to every broker at once: the worker asks again, and tells that once."""
    script(_UNKNOWN_TOPIC, _UNKNOWN_TOPIC)
    with caplog.at_level(logging.WARNING):
        assert await wait_for_topics(SETTINGS) == dict.fromkeys(CONFIGS, 4)
    assert len(caplog.messages) == 1


async def test_refused_question_ends_the_start(script: Any) -> None:
    """An answer that no waiting changes is an error with the topic's name."""
    script(_INVALID_REQUEST)
    with pytest.raises(TopicError, match=r"settings of topic inference\.requests cannot be read"):
        await wait_for_topics(SETTINGS)

"""Fixtures of all tests: the real local stack, started once and only when a test needs it.

A live test asks for `stack`, or for a part of it by name. Names that must not meet (topics, group, database) come from
`settings`, fresh for each test; `topics` are made for them, `processes` runs workers and sinks on them.
"""

import os
from collections.abc import Awaitable, Callable, Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from pipeline.adapters.kafka import client_options
from pipeline.config import Settings
from pipeline.watcher.report import RegistrationReport
from pipeline.watcher.repository_pass import register_models
from tests.adapters.valkey_process import ValkeyProcess
from tests.live.processes import ProcessGroup
from tests.live.stack import LiveStack, StackRun
from tests.live.topics import prepare_topics

pytest_plugins = ["tests.task_stacks"]

# A busy machine makes single examples slow, and no promise broken.
hypothesis.settings.register_profile(
    "tests", hypothesis.settings(), deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")

_stack_run = StackRun()

RegisterModels = Callable[[Settings, Path], Awaitable[RegistrationReport]]


def pytest_configure() -> None:
    """What this machine's user has set for a pipeline of their own is nothing to the tests."""
    for name in [name for name in os.environ if name.startswith("PIPELINE_")]:
        del os.environ[name]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Starts the stack before the first test that needs it, outside of that test's own time limit."""
    if "stack" in getattr(item, "fixturenames", ()):
        _stack_run.ensure_started()
    return (yield)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Stops the stack, also after Ctrl-C; last, for the teardown of what Ctrl-C interrupted is part of this hook."""
    _stack_run.stop()


@pytest.fixture(scope="session")
def stack() -> LiveStack:
    """The real servers: Kafka, Valkey, ClickHouse, two Tritons with the shipped models and echo."""
    return _stack_run.stack


@pytest.fixture(scope="session")
def bootstrap_servers(stack: LiveStack) -> str:
    """Kafka's address."""
    return stack.bootstrap_servers


@pytest.fixture(scope="session")
def clickhouse_url(stack: LiveStack) -> str:
    """ClickHouse's HTTP address."""
    return stack.clickhouse_url


@pytest.fixture(scope="session")
def redis_url(stack: LiveStack) -> str:
    """Valkey's address."""
    return stack.redis_url


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    """A Valkey that other modules do not use: it may be hurt. It runs; `reset` empties it, and starts it again."""
    process = ValkeyProcess(tmp_path_factory.mktemp("valkey"))
    process.start()
    try:
        yield process
    finally:
        process.kill()


@pytest.fixture(scope="module")
def own_kafka() -> Iterator[LiveStack]:
    """A broker that other modules do not use: it may be hurt."""
    run = StackRun("kafka")
    try:
        run.ensure_started()
        yield run.stack
    finally:
        run.stop()


@pytest.fixture(scope="session")
def triton_urls(stack: LiveStack) -> tuple[str, ...]:
    """The Tritons' gRPC addresses; digits, sentences and echo are loaded."""
    return stack.triton_urls


@pytest.fixture(scope="session")
def serving_dir(stack: LiveStack) -> Path:
    """The folder that the Tritons serve."""
    return stack.serving_dir


@pytest.fixture
def settings(stack: LiveStack) -> Settings:
    """Settings of the stack with a topic prefix, a group and a database of the test's own; nothing is made yet."""
    return stack.settings


@pytest.fixture
async def topics(stack: LiveStack, settings: Settings) -> Settings:
    """The same settings, with their topics made and the models announced on them."""
    await prepare_topics(settings, stack.models.values())
    return settings


@pytest.fixture
def processes() -> Iterator[ProcessGroup]:
    """Starts workers and sinks; whatever still runs at the end is stopped, and must stop as it should."""
    group = ProcessGroup()
    yield group
    group.stop()


@pytest.fixture
def register(stack: LiveStack) -> RegisterModels:
    """Registers a repository's models on the fleet and announces them on the topics of some settings."""

    async def run(settings: Settings, repository: Path) -> RegistrationReport:
        return await register_models(
            repository=repository,
            serving_dir=stack.serving_dir,
            triton_urls=stack.triton_urls,
            kafka_options=client_options(settings.kafka),
            topic=settings.topic("models"),
        )

    return run

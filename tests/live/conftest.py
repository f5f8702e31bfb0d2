"""One pipeline that most live tests share: topics, a worker, and a producer for each test."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pipeline.config import Settings
from tests.live.asking import Asking
from tests.live.processes import ProcessGroup, ServiceProcess
from tests.live.stack import LiveStack
from tests.live.topics import prepare_topics
from tests.live.triton_statistics import TritonStatistics
from tests.live.waiting import run_in_thread

# Starting the shared worker is part of the first test that uses it.
_FOLDER_TIMEOUT_S = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is live; a test without a limit of its own gets one that covers the shared worker's start."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.live)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(_FOLDER_TIMEOUT_S))


@pytest.fixture(scope="session")
def shared_worker(stack: LiveStack) -> Iterator[tuple[Settings, ServiceProcess]]:
    """A running worker on topics of its own, for tests that disturb nobody. Records are at most 256 KiB here."""
    settings = stack.make_settings(limits={"record_bytes": 256 * 1024})
    run_in_thread(prepare_topics(settings, stack.models.values()))
    group = ProcessGroup()
    try:
        yield settings, group.start_blocking("worker", settings)
    finally:
        group.stop()


@pytest.fixture
def worker(shared_worker: tuple[Settings, ServiceProcess]) -> ServiceProcess:
    """The shared worker."""
    shared_worker[1].check_running()
    return shared_worker[1]


@pytest.fixture
async def asking(shared_worker: tuple[Settings, ServiceProcess], worker: ServiceProcess) -> AsyncIterator[Asking]:
    """A producer of requests to the shared worker."""
    async with Asking(shared_worker[0]) as producer:
        yield producer
    worker.check_running()


@pytest.fixture
def statistics(stack: LiveStack) -> TritonStatistics:
    """How often the Tritons ran a model."""
    return TritonStatistics(stack.triton_http_urls)

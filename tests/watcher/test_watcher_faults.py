"""What a watcher survives: versions that end their server, or hang; a full disk; files that change under its hands."""

import asyncio
import errno
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from pipeline.adapters.kafka import client_options
from pipeline.adapters.topics import create_topics
from pipeline.config import Settings, WatcherSettings
from pipeline.errors import InferenceServerError
from pipeline.watcher import repository_pass
from pipeline.watcher.fleet.check import CheckLimits
from pipeline.watcher.fleet.triton_control import TritonControl
from pipeline.watcher.main import Watcher
from pipeline.watcher.report import RegistrationReport
from pipeline.watcher.repository_pass import Places, RepositoryPass
from pipeline.watcher.serving import version_store
from pipeline.watcher.serving.folder import ServingFolder
from schemas.tensor import Tensor
from tests.live.stack import LiveStack
from tests.watcher.adding_models import ADDS, adding_model, ends_server, ends_server_later, pids_in, waits_for
from tests.watcher.test_watcher import Place, default_is, state_is, until_ready

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

WAIT_S = 60.0


@pytest.fixture
async def place(stack: LiveStack, settings: Settings, tmp_path: Path) -> AsyncIterator[Place]:
    """A repository with a model of the test's own, for both servers; both are there again afterwards."""
    changes = {
        "data_dir": stack.serving_dir.parent,
        "model_repository": tmp_path / "repository",
        "watcher": WatcherSettings(interval_s=0.2, drain_s=0.3, quiet_s=0),
    }
    own = settings.model_copy(update=changes)
    await create_topics(own)
    own.model_repository.mkdir()
    name = f"f{own.kafka.topic_prefix.strip('.')}"
    adding_model(own.model_repository, name, {"1": 10})
    yield Place(own, name)
    ServingFolder(stack.serving_dir).withdraw(name)
    await until_live(Place(own, name))
    for url in stack.triton_urls:
        async with TritonControl(url) as server:
            await server.unload(name, 30)


async def until(holds: Callable[[], Awaitable[Any]]) -> None:
    """Returns once this holds."""
    async with asyncio.timeout(WAIT_S):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def until_live(place: Place) -> None:
    """Returns when every server answers."""
    for url in place.settings.triton.urls or ():
        async with TritonControl(url) as server, asyncio.timeout(WAIT_S):
            while not await server.is_live(1):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def until_met(path: Path, times: int) -> list[int]:
    """The servers that met a version with this diary, once there are so many."""

    async def met() -> bool:
        return len(pids_in(path)) >= times

    await until(met)
    return pids_in(path)


class Asking:
    """Asks version 1 without a pause, of one server and at its failure of the other."""

    def __init__(self, place: Place) -> None:
        self._model_name = place.model_name
        self._urls = place.settings.triton.urls or ()
        self.answers = 0
        self.refusals: list[str] = []

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator["Asking"]:
        """Asks for the block; what failed everywhere is raised at its end."""
        ended = asyncio.Event()
        asking = asyncio.create_task(self._ask(ended))
        try:
            yield self
        finally:
            ended.set()
            await asking
        assert self.answers
        assert self.refusals == []

    async def _ask(self, ended: asyncio.Event) -> None:
        servers = [TritonControl(url) for url in self._urls]
        while not ended.is_set():
            failures: list[str] = []
            for server in servers:
                try:
                    await self._ask_one(server)
                    break
                except InferenceServerError as error:
                    failures.append(str(error))
            if len(failures) == len(servers):
                self.refusals.append("; ".join(failures))
            await asyncio.sleep(0.01)
        for server in servers:
            await server.__aexit__(None, None, None)

    async def _ask_one(self, server: TritonControl) -> None:
        x = Tensor("x", "FP32", (1, 2), bytes(8))
        (y,) = await server.infer(self._model_name, "1", (x,), {}, decoupled=False, timeout_s=5)
        assert y.raw == bytes.fromhex("0000204100002041")  # 10.0 twice
        self.answers += 1

    async def until_answered(self, times: int) -> None:
        """Returns when there were so many answers."""

        async def enough() -> bool:
            return self.answers >= times

        await until(enough)


@asynccontextmanager
async def passes(place: Place, limits: CheckLimits) -> AsyncIterator[RepositoryPass]:
    """Passes made by hand, over what a watcher would look at."""
    settings = place.settings
    options = client_options(settings.kafka)
    places = Places(settings.model_repository, settings.data_dir / "serving", options, settings.topic("models"))
    async with AsyncExitStack() as resources:
        urls = settings.triton.urls or ()
        servers = [await resources.enter_async_context(TritonControl(url)) for url in urls]
        producer = await resources.enter_async_context(AIOKafkaProducer(**options, acks="all", enable_idempotence=True))
        yield RepositoryPass(places, servers, producer, limits=limits)


def state_of(report: RegistrationReport, version: str) -> str:
    """What a pass says of a version."""
    return next((found.state for found in report.versions if found.version == version), "not told")


def reason_of(report: RegistrationReport, version: str) -> str:
    """Why it says so."""
    return next(found.reason for found in report.versions if found.version == version)


async def until_told(watcher: Watcher, words: str) -> None:
    """Returns once the watcher's state tells a fault with these words, as `pipeline status` would show it."""

    async def told() -> bool:
        return any(words in fault for fault in watcher._state()["faults"])

    await until(told)


async def rejections(place: Place) -> list[tuple[str, str]]:
    """Version and reason of each model.rejected event, once."""
    events = {event["event_id"]: event for event in await place.events() if event["event_type"] == "model.rejected"}
    return [(event["model_version"], event["attributes"]["reason"]) for event in events.values()]


async def test_version_that_ends_its_server_is_met_by_one_server_alone(
    place: Place, stack: LiveStack, tmp_path: Path
) -> None:
    """It ends it twice and is rejected; the other server never meets it, and the good version never fails."""
    diary = tmp_path / "diary"
    async with place.watched() as watcher:
        await place.until(default_is("1"))
        await place.until_served("1")
        other = stack.pid("triton-1")
        async with Asking(place).going_on():
            place.publish("2", ends_server("load", 20, diary))
            record = await place.until(state_is("2", "rejected"))
            await until_live(place)
        await place.until_served("1")
        await until_ready(watcher)
    assert record is not None
    assert record.default_version == "1"
    assert stack.pid("triton-1") == other
    assert len(pids_in(diary)) == len(set(pids_in(diary))) == 2
    ((version, reason),) = await rejections(place)
    assert (version, reason) == ("2", record.versions["2"].reason)
    assert "stopped answering while it tried it" in reason


async def test_version_that_ends_its_server_at_the_sample_is_taken_out_until_that_is_back(
    place: Place, stack: LiveStack, tmp_path: Path
) -> None:
    """It was loaded, and dies of its first request: no other server has it, and other content is tried at once."""
    diary = tmp_path / "diary"
    staged = place.settings.data_dir / "serving" / place.model_name / "2"
    async with place.watched() as watcher:
        await place.until(default_is("1"))
        other = stack.pid("triton-1")
        async with Asking(place).going_on():
            place.publish("2", ends_server("inference", 20, diary))
            await until_told(watcher, "stopped answering while it tried it: UNAVAILABLE")
            assert not staged.exists()
            (place.folder / "2" / "model.py").write_text(ADDS.format(20), encoding="utf-8")
            await place.until(default_is("2"))
            await until_live(place)
        await place.until_served("1", "2")
    assert (len(pids_in(diary)), stack.pid("triton-1")) == (1, other)
    assert await rejections(place) == []


async def test_good_version_whose_server_was_killed_is_tried_once_more(
    place: Place, stack: LiveStack, tmp_path: Path
) -> None:
    """Somebody else kills the server that loads it: when that is back it is tried again, serves, and was no failure."""
    diary, gate = tmp_path / "diary", tmp_path / "gate"
    async with place.watched() as watcher:
        await place.until(default_is("1"))
        place.publish("2", waits_for(gate, 20, diary))
        (loading,) = await until_met(diary, 1)
        assert loading == stack.pid("triton-0")
        os.kill(loading, signal.SIGKILL)
        await until_told(watcher, "it is tried once more")
        gate.touch()
        await place.until(default_is("2"))
        await until_live(place)
        await place.until_served("1", "2")
        await until_ready(watcher)
    assert await rejections(place) == []
    assert loading not in pids_in(diary)[1:]


async def test_load_that_hangs_leaves_its_server_out_until_it_is_restarted(
    place: Place, stack: LiveStack, tmp_path: Path
) -> None:
    """It is rejected after the limit, the old version serves, and the next one is not taken for what hangs, too."""
    diary, gate = tmp_path / "diary", tmp_path / "gate"
    limits = CheckLimits(load_timeout_s=1.5, call_timeout_s=5)
    async with passes(place, limits) as by_hand:
        await by_hand.run(retries=False, withdraws=True)
        place.publish("2", waits_for(gate, 20, diary))
        hung = await by_hand.run(retries=False, withdraws=True)
        assert reason_of(hung, "2").startswith(f"{stack.triton_urls[0]}: the load did not end in 2 s")
        place.publish("3", ADDS.format(30))
        later = await by_hand.run(retries=False, withdraws=True)
        assert (state_of(later, "3"), later.unreachable) == ("announced", stack.triton_urls[:1])
        assert later.records[place.model_name].default_version == "3"
        async with Asking(place).going_on() as asking:
            await asking.until_answered(3)
        assert pids_in(diary) == [stack.pid("triton-0")]
        os.kill(stack.pid("triton-0"), signal.SIGKILL)
        await until_live(place)
        restarted = await by_hand.run(retries=False, withdraws=True)
        assert (state_of(restarted, "3"), restarted.unreachable) == ("unchanged", ())
        await place.until_served("1", "3")


async def test_version_that_ends_servers_later_goes_with_its_folder(
    place: Place, stack: LiveStack, tmp_path: Path
) -> None:
    """Both servers load it and die of it, again and again: its owner takes its folder away, and they find it gone."""
    diary, armed = tmp_path / "diary", tmp_path / "armed"
    staged = place.settings.data_dir / "serving" / place.model_name / "2"
    async with place.watched() as watcher:
        await place.until(default_is("1"))
        place.publish("2", ends_server_later(armed, 20, diary))
        await place.until(default_is("2"))
        await place.until_served("1", "2")
        armed.touch()
        await until_met(diary, 2)
        shutil.rmtree(place.folder / "2")
        left = await place.until(default_is("1"))
        assert left is not None
        assert left.previous_version is None
        await until(lambda: asyncio.to_thread(lambda: not staged.exists()))
        await place.until(state_is("2", None))
        await until_live(place)
        await place.until_served("1")
        await until_ready(watcher)


async def test_full_disk_lets_the_old_version_serve_until_there_is_space(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report says what is full, nobody is told of a rejection, and the version arrives by itself."""
    copy = version_store._copy
    stored = place.settings.data_dir / "serving.versions" / place.model_name

    def copied(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    async with place.watched() as watcher:
        before = await place.until(default_is("1"))
        monkeypatch.setattr(version_store, "_copy", copied)
        place.publish("2", ADDS.format(20))
        await until_told(watcher, "No space left on device")
        passes = watcher._passes.labels("done")._value
        seen = passes.get()
        await until(lambda: asyncio.to_thread(lambda: passes.get() > seen + 2))
        assert await place.record() == before
        assert {path.name.partition("-")[0] for path in stored.iterdir()} == {"1"}
        await place.until_served("1")
        monkeypatch.setattr(version_store, "_copy", copy)
        await place.until(default_is("2"))
        await until_ready(watcher)
    assert await rejections(place) == []


@pytest.mark.parametrize("goes", ["repository", "version"])
async def test_what_goes_in_the_middle_of_a_pass_rejects_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, goes: str
) -> None:
    """A folder that is away while a version is copied is waited for; what served goes on without a word against it."""
    copy = version_store._copy
    gone = place.repository if goes == "repository" else place.folder / "2"
    away = place.repository.parent / "away"

    def copied(source: Path, target: Path) -> None:
        if not away.exists():
            gone.rename(away)
        copy(source, target)

    async with place.watched() as watcher:
        before = await place.until(default_is("1"))
        monkeypatch.setattr(version_store, "_copy", copied)
        place.publish("2", ADDS.format(20))
        await until(lambda: asyncio.to_thread(away.exists))
        passes = [watcher._passes.labels(outcome)._value for outcome in ("done", "failed")]
        seen = sum(value.get() for value in passes)
        await until(lambda: asyncio.to_thread(lambda: sum(value.get() for value in passes) > seen + 1))
        assert await place.record() == before
        monkeypatch.setattr(version_store, "_copy", copy)
        away.rename(gone)
        await place.until(default_is("2"))
        await until_ready(watcher)
    assert await rejections(place) == []


async def test_clock_that_is_set_back_lets_versions_leave(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour back in the middle of a drain: it begins anew by the clock as it is, and the version leaves."""
    set_by: list[timedelta] = [timedelta()]

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + set_by[0]

    monkeypatch.setattr(repository_pass, "datetime", Clock)
    place.settings = place.settings.model_copy(
        update={"watcher": place.settings.watcher.model_copy(update={"drain_s": 0.6})}
    )
    async with place.watched():
        await place.until(default_is("1"))
        place.publish("2", ADDS.format(20))
        await place.until(default_is("2"))
        shutil.rmtree(place.folder / "1")
        await place.until(state_is("1", "draining"))
        set_by[0] = timedelta(hours=-1)
        last = await place.until(state_is("1", None))
    assert last is not None
    assert last.effective_at < datetime.now(UTC) - timedelta(minutes=59)

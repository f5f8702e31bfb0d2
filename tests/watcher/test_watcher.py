"""The watcher on a real Triton and a real Kafka: versions come, change, go, fail; watchers die and meet."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from pipeline.adapters.control_topic import ask_watcher
from pipeline.adapters.kafka import cancel_until_ended, client_options
from pipeline.adapters.models_topic import decode_model_record, read_models
from pipeline.adapters.topics import create_topics
from pipeline.config import Settings, WatcherSettings
from pipeline.errors import ServerUnavailable
from pipeline.watcher.fleet.triton_control import TritonControl
from pipeline.watcher.main import Watcher
from pipeline.watcher.serving.folder import ServingFolder
from schemas.control import ModelPromoteCommand
from schemas.registry import ModelRecord
from tests.watcher.adding_models import ADDS, FAILS, SLOW, adding_model

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

WAIT_S = 60.0


class Place:
    """A repository of the test's own, with one model, and topics of its own."""

    def __init__(self, settings: Settings, model_name: str) -> None:
        self.settings = settings
        self.model_name = model_name
        self.repository = settings.model_repository
        self.folder = self.repository / model_name

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[Watcher]:
        """A watcher that works for the block; what it fails of is raised at its end."""
        async with AsyncExitStack() as resources:
            watcher = Watcher(self.settings)
            await watcher.start(resources)
            working = asyncio.create_task(watcher.work())
            try:
                yield watcher
            finally:
                await cancel_until_ended(working)
                if not working.cancelled():
                    working.result()

    async def until_death(self) -> None:
        """A watcher works until it dies."""
        async with AsyncExitStack() as resources:
            watcher = Watcher(self.settings)
            await watcher.start(resources)
            async with asyncio.timeout(WAIT_S):
                await watcher.work()

    def publish(self, version: str, source: str) -> None:
        """A version as an owner brings it: copied aside, then renamed."""
        aside = self.repository / f".{self.model_name}-{version}"
        aside.mkdir()
        (aside / "model.py").write_text(source, encoding="utf-8")
        aside.rename(self.folder / version)

    async def record(self) -> ModelRecord | None:
        options = client_options(self.settings.kafka)
        return (await read_models(options, self.settings.topic("models"))).get(self.model_name)

    async def until(self, holds: Callable[[ModelRecord | None], Any]) -> ModelRecord | None:
        """The record once this holds of it."""
        async with asyncio.timeout(WAIT_S):
            while not holds(record := await self.record()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return record

    async def until_served(self, *versions: str) -> None:
        """Returns when every server answers for exactly these of the versions 1 to 4."""
        async with asyncio.timeout(WAIT_S):
            for url in self.settings.triton.urls or ():
                async with TritonControl(url) as server:
                    while await self._served_by(server) != set(versions):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)

    async def _served_by(self, server: TritonControl) -> set[str]:
        return {number for number in "1234" if await server.is_ready(self.model_name, number, 5)}

    async def history(self) -> list[ModelRecord | None]:
        """Every record of the model that was ever published, in order; None for its removal."""
        own = [record for record in await self._read("models") if record.key == self.model_name.encode()]
        return [decode_model_record(record.key, record.value) if record.value else None for record in own]

    async def events(self) -> list[dict[str, Any]]:
        lines = b"".join([record.value or b"" for record in await self._read("events")])
        return [orjson.loads(line) for line in lines.splitlines()]

    async def _read(self, name: str) -> list[ConsumerRecord]:
        """Everything a topic holds now."""
        consumer = AIOKafkaConsumer(**client_options(self.settings.kafka), auto_offset_reset="earliest")
        async with consumer:
            first = TopicPartition(self.settings.topic(name), 0)
            consumer.assign([first])
            await consumer.end_offsets([first])
            numbers = consumer.partitions_for_topic(first.topic) or {0}
            partitions = [TopicPartition(first.topic, number) for number in numbers]
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            records: list[ConsumerRecord] = []
            while any([await consumer.position(partition) < end for partition, end in ends.items()]):
                for some in (await consumer.getmany(timeout_ms=200)).values():
                    records += some
        return sorted(records, key=lambda record: record.timestamp)

    async def promote(self, version: str, **changes: Any) -> Any:
        command = ModelPromoteCommand(id=f"promote-{version}", model_name=self.model_name, version=version, **changes)
        return await ask_watcher(client_options(self.settings.kafka), self.settings.topic("control"), command, WAIT_S)


def default_is(version: str) -> Callable[[ModelRecord | None], bool]:
    return lambda record: record is not None and record.default_version == version


def state_is(version: str, state: str | None) -> Callable[[ModelRecord | None], bool]:
    def holds(record: ModelRecord | None) -> bool:
        found = record.versions.get(version) if record is not None else None
        return (found.state if found is not None else None) == state

    return holds


@pytest.fixture
async def place(
    settings: Settings, tmp_path: Path, serving_dir: Path, triton_urls: tuple[str, ...]
) -> AsyncIterator[Place]:
    """Settings with the stack's serving folder, and a name that no other test uses."""
    changes = {
        "data_dir": serving_dir.parent,
        "model_repository": tmp_path / "repository",
        "watcher": WatcherSettings(interval_s=0.2, drain_s=0.3, quiet_s=0),
        # One server of the stack's: a load takes it a second. What concerns several of them says so.
        "triton": settings.triton.model_copy(update={"urls": triton_urls[:1]}),
    }
    own = settings.model_copy(update=changes)
    await create_topics(own)
    own.model_repository.mkdir()
    made = Place(own, f"w{own.kafka.topic_prefix.strip('.').rpartition('-')[2].rpartition('.')[2]}")
    yield made
    ServingFolder(serving_dir).withdraw(made.model_name)
    for url in triton_urls:
        async with TritonControl(url) as server:
            await server.unload(made.model_name, 30)


async def test_versions_take_over_and_the_one_before_the_previous_leaves(
    place: Place, triton_urls: tuple[str, ...]
) -> None:
    """A new version answers once it is checked; the previous stays, the one before is unloaded and forgotten."""
    fleet = place.settings.triton.model_copy(update={"urls": triton_urls})
    place.settings = place.settings.model_copy(update={"triton": fleet})
    adding_model(place.repository, place.model_name, {"1": 10})
    config = place.folder / "config.pbtxt"
    config.write_text(config.read_text().replace("num_versions: 2", "num_versions: 1"))
    (place.folder / "sample.json").unlink()
    async with place.watched():
        await place.until(default_is("1"))
        place.publish("2", ADDS.format(20))
        second = await place.until(default_is("2"))
        assert second is not None
        assert second.versions["1"].state == "ready"
        place.publish("3", ADDS.format(30))
        await place.until(default_is("3"))
        await place.until(state_is("1", None))
        await place.until_served("2", "3")
    told = [record.versions["1"].state for record in await place.history() if record and "1" in record.versions]
    assert [state for state, before in zip(told, ["", *told], strict=False) if state != before] == [
        "ready", "draining", "unloaded",
    ]  # fmt: skip


async def test_every_step_is_an_event_once(place: Place) -> None:
    """What happened to each version is in the log, once, whoever tells it and however often."""
    adding_model(place.repository, place.model_name, {"1": 10})
    async with place.watched():
        await place.until(default_is("1"))
        place.publish("2", FAILS)
        await place.until(state_is("2", "rejected"))
    async with place.watched() as again:
        await until_ready(again)
    events = [event for event in await place.events() if event["model_name"] == place.model_name]
    by_id = {event["event_id"]: (event["event_type"], event["model_version"]) for event in events}
    assert sorted(by_id.values()) == [
        ("model.discovered", "1"), ("model.discovered", "2"), ("model.loaded", "1"), ("model.promoted", "1"),
        ("model.rejected", "2"),
    ]  # fmt: skip
    reasons = {event["attributes"]["reason"] for event in events if event["event_type"] == "model.rejected"}
    assert len(reasons) == 1
    assert "no weights" in reasons.pop()


async def until_ready(watcher: Watcher) -> None:
    async with asyncio.timeout(WAIT_S):
        while watcher._not_ready():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_rejected_content_meets_a_server_once(place: Place, tmp_path: Path) -> None:
    """Passes that follow leave it alone, a new watcher too; other content under its number is tried."""
    tries = tmp_path / "tries"
    adding_model(place.repository, place.model_name, {"1": 10})
    noisy = FAILS.replace("raise", f"open({str(tries)!r}, 'a').write('x'); raise")
    async with place.watched():
        await place.until(default_is("1"))
        place.publish("2", noisy)
        await place.until(state_is("2", "rejected"))
        place.publish("3", ADDS.format(10))
        await place.until(default_is("3"))
    once = tries.read_text()
    async with place.watched() as again:
        await until_ready(again)
        assert tries.read_text() == once
        (place.folder / "2" / "model.py").write_text(ADDS.format(20))
        await place.until(state_is("2", "ready"))


async def test_content_that_changes_in_place_is_told_before_it_is_served(place: Place) -> None:
    """Workers hear that a version's content is being replaced two seconds before any server has the new one."""
    adding_model(place.repository, place.model_name, {"1": 10})
    (place.folder / "sample.json").unlink()
    async with place.watched():
        first = await place.until(default_is("1"))
        assert first is not None
        (place.folder / "1" / "model.py").write_text(ADDS.format(11))
        await place.until(lambda record: record and record.versions["1"].fingerprint != first.versions["1"].fingerprint)
    told = [
        (record.versions["1"].fingerprint, record.versions["1"].changing) for record in await place.history() if record
    ]
    assert [changing for _, changing in told] == [False, True, False]
    assert told[0][0] == told[1][0] != told[2][0]


async def test_removed_model_drains_and_leaves(place: Place) -> None:
    """A folder its owner removed stops being served after the drain time; another model is left alone."""
    adding_model(place.repository, place.model_name, {"1": 10})
    other = f"{place.model_name}b"
    adding_model(place.repository, other, {"1": 10})
    async with place.watched():
        await place.until(default_is("1"))
        shutil.rmtree(place.folder)
        await place.until(lambda record: record is None)
        await place.until_served()
        options = client_options(place.settings.kafka)
        assert set(await read_models(options, place.settings.topic("models"))) == {other}
        shutil.move(place.repository / other, place.repository.parent / "away")
    ServingFolder(place.settings.data_dir / "serving").withdraw(other)


@pytest.mark.parametrize("loss", ["emptied", "moved away"])
async def test_repository_that_is_lost_takes_nothing_away(place: Place, loss: str) -> None:
    """A disk that is not mounted, or a folder that is gone, leaves everything serving; its return is noticed."""
    adding_model(place.repository, place.model_name, {"1": 10})
    away = place.repository.parent / "away"
    async with place.watched() as watcher:
        before = await place.until(default_is("1"))
        place.repository.rename(away)
        if loss == "emptied":
            place.repository.mkdir()
        passes = watcher._passes.labels("done" if loss == "emptied" else "failed")._value
        seen = passes.get()
        async with asyncio.timeout(WAIT_S):
            while passes.get() == seen:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert await place.record() == before
        if loss == "emptied":
            place.repository.rmdir()
        else:
            assert "no folder" in watcher._not_ready()["repository"]
        away.rename(place.repository)
        place.publish("2", ADDS.format(10))
        await place.until(default_is("2"))


async def test_operator_promotes_and_goes_back(place: Place) -> None:
    """A command changes the default with notice; done again it changes nothing; what cannot be done says why."""
    adding_model(place.repository, place.model_name, {"1": 10, "2": 20})
    async with place.watched():
        await place.until(default_is("2"))
        back = await place.promote("1", expected_default="2")
        assert (back.error, back.changed, back.default_version, back.previous_version) == (None, True, "1", "2")
        again = await place.promote("1", expected_default="2")
        assert (again.error, again.changed) == (None, False)
        assert "for its default by now" in (await place.promote("2", expected_default="3")).error
        assert "is not there; served: 1, 2" in (await place.promote("9")).error
        place.publish("3", ADDS.format(20))
        await place.until(default_is("3"))
        trial = await place.promote("2", share=0.25)
        assert (trial.error, trial.default_version) == (None, "3")
        record = await place.record()
        assert record is not None
        assert record.canary is not None
        assert (record.canary.version, record.canary.share) == ("2", 0.25)
        assert (await place.promote("2", share=0.0)).changed
        assert "is not on trial" in (await place.promote("2", share=0.0)).error


async def test_two_watchers_do_no_harm(place: Place) -> None:
    """Both see every change, one brings it about: each record is published once."""
    adding_model(place.repository, place.model_name, {"1": 10})
    async with place.watched() as one, place.watched() as other:
        await place.until(default_is("1"))
        place.publish("2", ADDS.format(10))
        await place.until(default_is("2"))
        assert (await place.promote("1", expected_default="2")).error is None
        for watcher in (one, other):
            await until_ready(watcher)
    assert [record.default_version for record in await place.history() if record] == ["1", "2", "1"]


STEPS = {
    "before anything is served": (ServingFolder, "serve", "before"),
    "after it is served": (ServingFolder, "serve", "after"),
    "before a server loads it": (TritonControl, "load", "before"),
    "after a server loaded it": (TritonControl, "load", "after"),
    "while it is checked": (TritonControl, "config", "before"),
    "after the sample": (TritonControl, "infer", "after"),
    "before it is announced": (AIOKafkaProducer, "send_and_wait", "before"),
    "after it is announced": (AIOKafkaProducer, "send_and_wait", "after"),
}


@pytest.mark.parametrize("step", STEPS)
async def test_watcher_may_die_at_any_step(place: Place, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Whoever comes after it ends where it would have ended: the version serves, announced and told once."""
    adding_model(place.repository, place.model_name, {"1": 10})
    async with place.watched():
        await place.until(default_is("1"))
    place.publish("2", ADDS.format(10))
    with monkeypatch.context() as patch:
        _die_at(patch, *STEPS[step])
        with pytest.raises(_Died):
            await place.until_death()
    async with place.watched() as successor:
        await place.until(default_is("2"))
        await place.until_served("1", "2")
        await until_ready(successor)
    assert [record.default_version for record in await place.history() if record] == ["1", "2"]
    events = {event["event_id"]: event["event_type"] for event in await place.events() if event["model_version"] == "2"}
    assert sorted(events.values()) == ["model.discovered", "model.loaded", "model.promoted"]


class _Died(BaseException):
    """Ends a watcher as a signal would: nothing catches it."""


def _die_at(patch: pytest.MonkeyPatch, owner: type, name: str, when: str) -> None:
    method = getattr(owner, name)
    if asyncio.iscoroutinefunction(method):

        async def dying_later(*args: Any, **kwargs: Any) -> Any:
            if when == "after":
                await method(*args, **kwargs)
            raise _Died

        patch.setattr(owner, name, dying_later)
        return

    def dying(*args: Any, **kwargs: Any) -> Any:
        if when == "after":
            method(*args, **kwargs)
        raise _Died

    patch.setattr(owner, name, dying)


async def test_trial_of_a_version_that_fails_ends_by_itself(place: Place) -> None:
    """Results say that it fails where the default does not: it is tried no more, held, and the log says why."""
    adding_model(place.repository, place.model_name, {"1": 10, "2": 20})
    async with place.watched() as watcher:
        await place.until(default_is("2"))
        assert (await place.promote("1")).error is None
        assert (await place.promote("2", share=0.5)).error is None
        async with asyncio.timeout(WAIT_S):
            while watcher._trials._reading is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        producer = AIOKafkaProducer(**client_options(place.settings.kafka))
        async with producer, asyncio.timeout(WAIT_S):
            while (record := await place.record()) is None or record.canary is not None:
                for version, status in (("1", "succeeded"), ("2", "failed")):
                    value = orjson.dumps({"id": "a", "status": status, "model_version": version, "parameters": {}})
                    headers = [("ce_subject", place.model_name.encode())]
                    await producer.send_and_wait(place.settings.topic("results"), value, headers=headers)
        assert (record.default_version, record.held) == ("1", ("2",))
        assert "answers failed" in (record.versions["2"].reason or "")
        await until_ready(watcher)
        place.publish("3", ADDS.format(20))
        later = await place.until(default_is("3"))
        assert later is not None
        assert later.versions["2"].reason == record.versions["2"].reason
    rejected = [event for event in await place.events() if event["event_type"] == "model.rejected"]
    assert {event["attributes"]["reason"] for event in rejected} == {record.versions["2"].reason}


async def test_version_that_ends_servers_is_met_by_one_and_rejected_the_second_time(
    place: Place, triton_urls: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stops while it loads a version finds it gone when it is back; once may be chance, twice is not."""
    fleet = place.settings.triton.model_copy(update={"urls": triton_urls})
    place.settings = place.settings.model_copy(update={"triton": fleet})
    adding_model(place.repository, place.model_name, {"1": 10})
    (place.folder / "sample.json").unlink()
    staged = place.settings.data_dir / "serving" / place.model_name / "2"
    dead: set[str] = set()
    deaths: list[str] = []
    order, call = TritonControl._order, TritonControl._call

    async def ordered(server: TritonControl, method: str, request: Any, timeout_s: float) -> None:
        if method == "RepositoryModelLoad" and request.model_name == place.model_name and staged.exists():
            dead.add(server.address)
            deaths.append(server.address)
        if server.address in dead:
            raise ServerUnavailable(server.address, "connection lost")
        await order(server, method, request, timeout_s)

    async def called(server: TritonControl, method: str, request: Any, timeout_s: float) -> Any:
        if server.address in dead:
            raise ServerUnavailable(server.address, "connection lost")
        return await call(server, method, request, timeout_s)

    async with place.watched():
        await place.until(default_is("1"))
        with monkeypatch.context() as patch:
            patch.setattr(TritonControl, "_order", ordered)
            patch.setattr(TritonControl, "_call", called)
            place.publish("2", ADDS.format(20))
            for _ in range(2):
                async with asyncio.timeout(WAIT_S):
                    while not dead or staged.exists():  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                dead.clear()
            rejected = await place.until(state_is("2", "rejected"))
        assert len(deaths) == 2
        assert rejected is not None
        assert "stopped answering while it tried it" in (rejected.versions["2"].reason or "")
        assert rejected.default_version == "1"
        await place.until_served("1")


@pytest.mark.parametrize("checked", [True, False])
async def test_version_that_is_much_slower_does_not_take_over(place: Place, checked: bool) -> None:
    """It answers rightly and takes 0.2 s where the default takes milliseconds; its owner may say that this is fine."""
    adding_model(place.repository, place.model_name, {"1": 10})
    if not checked:
        config = place.folder / "config.pbtxt"
        config.write_text(config.read_text() + 'parameters { key: "latency_check" value { string_value: "off" } }')
    async with place.watched():
        await place.until(default_is("1"))
        place.publish("2", SLOW.format(10))
        if checked:
            record = await place.until(state_is("2", "rejected"))
            assert record is not None
            assert record.default_version == "1"
            assert "ms for the sample, version 1 takes" in (record.versions["2"].reason or "")
        else:
            await place.until(default_is("2"))


async def test_fatal_version_that_a_dead_watcher_left_behind_is_not_served_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watcher died with it in the serving folder; the server dies of it too, and does not find it when it is back."""
    adding_model(place.repository, place.model_name, {"1": 10})
    async with place.watched():
        await place.until(default_is("1"))
    place.publish("2", ADDS.format(10))
    with monkeypatch.context() as patch:
        _die_at(patch, *STEPS["before a server loads it"])
        with pytest.raises(_Died):
            await place.until_death()
    staged = place.settings.data_dir / "serving" / place.model_name / "2"
    assert staged.exists()
    dead: set[str] = set()
    call = TritonControl._call

    async def ordered(server: TritonControl, method: str, request: Any, timeout_s: float) -> None:
        dead.add(server.address)
        raise ServerUnavailable(server.address, "connection lost")

    async def called(server: TritonControl, method: str, request: Any, timeout_s: float) -> Any:
        if server.address in dead:
            raise ServerUnavailable(server.address, "connection lost")
        return await call(server, method, request, timeout_s)

    with monkeypatch.context() as patch:
        patch.setattr(TritonControl, "_order", ordered)
        patch.setattr(TritonControl, "_call", called)
        async with place.watched() as watcher:
            await until_ready(watcher)
            assert dead
            assert not staged.exists()

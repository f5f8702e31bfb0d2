"""Updates by restarts on real Tritons that take no load orders, under load."""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.adapters.topics import create_topics
from pipeline.config import WatcherSettings
from pipeline.stack import PartPhase, PartState, Stack, StackPlan
from pipeline.stack.process import RestartPolicy
from pipeline.stack.triton import TritonInstance
from pipeline.watcher.fleet.check import CheckLimits
from pipeline.watcher.fleet.restart_orders import LocalRestart
from pipeline.watcher.fleet.strategy import chosen_update
from pipeline.watcher.fleet.triton_control import ModelControlOff, TritonControl
from pipeline.watcher.main import register_once
from pipeline.watcher.repository_pass import register_models
from tests.live.asking import Asking, fresh_id, fresh_value
from tests.live.processes import ProcessGroup
from tests.live.stack import LiveStack
from tests.live.stack_process import _choose_ports
from tests.watcher.adding_models import ADDS, FAILS, adding_model
from tests.watcher.test_watcher import Place, default_is

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

FIRST_PAUSE_S = 0.2
CALLERS = 4
# What an operator would write: here it ends the process by the state file of the test's own stack, and keeps a log.
COMMAND = "{python} -m tests.watcher.restart_command {data_dir} {{address}} {{instance}}"
DIES = """
import os, signal


class TritonPythonModel:
    def initialize(self, args):
        os.kill(os.getppid(), signal.SIGKILL)
"""


@dataclass
class RestartedFleet:
    """Two Tritons that decide themselves what they load, and everything that became of them.

    Attributes:
        changes: every change of state, in the order in which it came.
    """

    place: Place
    changes: list[PartState] = field(default_factory=list)

    @property
    def restarts(self) -> list[str]:
        """Who was started again, in turn."""
        return [change.name for change in self.changes if change.phase is PartPhase.RESTARTING]

    @property
    def away_at_once(self) -> int:
        """The most servers that were away at one time."""
        away: set[str] = set()
        most = 0
        for change in self.changes:
            if change.phase is PartPhase.READY:
                away.discard(change.name)
            elif change.phase is PartPhase.EXITED:
                away.add(change.name)
            most = max(most, len(away))
        return most

    async def until_restarted(self, times: int) -> None:
        """Returns when so many restarts were made, and all servers are ready again."""
        async with asyncio.timeout(60):
            while self.changes[-1].phase is not PartPhase.READY or len(self.restarts) < times:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    @property
    def urls(self) -> tuple[str, ...]:
        return self.place.settings.triton.urls or ()

    def by(self, **watcher: Any) -> None:
        """Other watcher settings."""
        changed = self.place.settings.watcher.model_copy(update=watcher)
        self.place.settings = self.place.settings.model_copy(update={"watcher": changed})


def _without_control(made: TritonInstance, plan: StackPlan) -> tuple[str, ...]:
    words = _ARGV(made, plan)
    return tuple(
        word.replace("=explicit", "=none") if word.startswith("--model-control-mode") else word
        for word in words
        if not word.startswith("--load-model")
    )


_ARGV = TritonInstance._argv


@pytest.fixture
async def fleet(stack: LiveStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RestartedFleet]:
    """The fleet, which serves nothing yet, and a watcher's settings for it by the local stack."""
    monkeypatch.setattr(TritonInstance, "_argv", _without_control)
    data_dir = tmp_path / "data"
    (data_dir / "serving").mkdir(parents=True)
    _choose_ports(data_dir / "ports.json")
    plan = StackPlan(
        data_dir, kafka=False, valkey=False, clickhouse=False, triton_count=2, serving_dir=data_dir / "serving"
    )
    changes: list[PartState] = []
    async with Stack(plan, changes.append, RestartPolicy(first_s=FIRST_PAUSE_S)) as own:
        urls = [one.grpc for one in (await own.start_servers()).triton]
        settings = stack.make_settings(triton={"urls": ",".join(urls)}, redis={"url": ""}).model_copy(
            update={
                "data_dir": data_dir,
                "model_repository": tmp_path / "repository",
                "watcher": WatcherSettings(interval_s=0.2, quiet_s=0, drain_s=0.3, strategy="restart"),
            }
        )
        settings.model_repository.mkdir()
        await create_topics(settings)
        yield RestartedFleet(Place(settings, "m"), changes)


async def test_version_comes_under_load_by_one_restart_each(
    fleet: RestartedFleet, processes: ProcessGroup, tmp_path: Path
) -> None:
    """Servers without model control get a new version one after the other; no request fails, and none is told twice."""
    data_dir = fleet.place.settings.data_dir
    fleet.by(restart_command=COMMAND.format(python=sys.executable, data_dir=data_dir))
    adding_model(fleet.place.repository, "m", {"1": 10})
    (fleet.place.folder / "sample.json").unlink()
    async with TritonControl(fleet.urls[0]) as server:
        with pytest.raises(ModelControlOff):
            await server.load("m", 5)
    async with fleet.place.watched():
        await fleet.place.until(default_is("1"))
        assert fleet.restarts == ["triton-0", "triton-1"]
        await processes.start("worker", fleet.place.settings)
        async with Asking(fleet.place.settings) as asking:
            ended = asyncio.Event()
            callers = [asyncio.create_task(_ask_in_turn(asking, ended)) for _ in range(CALLERS)]
            fleet.place.publish("2", ADDS.format(20))
            await fleet.place.until(default_is("2"))
            await _until_answered_by("2", asking)
            ended.set()
            versions = [version for versions in await asyncio.gather(*callers) for version in versions]
        await fleet.place.until_served("1", "2")
    assert set(versions) == {"1", "2"}
    assert fleet.restarts == ["triton-0", "triton-1"] * 2
    assert fleet.away_at_once == 1
    told = (data_dir / "restarts.log").read_text().split()
    assert told == ["triton-0", "triton-1"] * 2


async def _ask_in_turn(asking: Asking, ended: asyncio.Event) -> list[str | None]:
    """One caller, who asks again when he is answered; which versions answered."""
    versions = []
    while not ended.is_set():
        value = fresh_value()
        answer = await asking.ask(_request(value), timeout_s=40)
        assert answer.status == "succeeded", f"failed: {answer.message}"
        assert answer.result.outputs is not None
        expected = value + {"1": 10.0, "2": 20.0}[answer.result.model_version or ""]
        assert answer.result.outputs[0].data == [expected] * 2, "another version's answer"
        versions.append(answer.result.model_version)
    return versions


def _request(value: float) -> dict[str, Any]:
    return {
        "id": fresh_id(),
        "model_name": "m",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [value, value]}],
    }


async def _until_answered_by(version: str, asking: Asking) -> None:
    async with asyncio.timeout(40):
        while (await asking.ask(_request(fresh_value()), timeout_s=40)).result.model_version != version:
            pass


async def test_bad_versions_meet_the_first_server_alone(fleet: RestartedFleet) -> None:
    """What fails to load, or kills its server at the start, is taken out again; the second server is never touched."""
    update = chosen_update(fleet.place.settings)
    adding_model(fleet.place.repository, "m", {"1": 10})
    (fleet.place.folder / "sample.json").unlink()
    assert (await register_once(fleet.place.settings)).ok
    assert fleet.restarts == ["triton-0", "triton-1"]

    async def outcome(version: str, source: str) -> tuple[str, str]:
        fleet.place.publish(version, source)
        settings = fleet.place.settings
        report = await register_models(
            repository=settings.model_repository,
            serving_dir=settings.data_dir / "serving",
            triton_urls=fleet.urls,
            kafka_options={"bootstrap_servers": settings.kafka.bootstrap_servers},
            topic=settings.topic("models"),
            limits=CheckLimits(load_timeout_s=6.0),
            update=update,
        )
        shutil.rmtree(fleet.place.folder / version)
        return next((one.state, one.reason) for one in report.versions if one.version == version)

    state, reason = await outcome("2", FAILS)
    assert (state, "no weights" in reason) == ("rejected", True)
    assert fleet.restarts[2:] == ["triton-0"] * 2
    await fleet.place.until_served("1")
    state, reason = await outcome("3", DIES)
    assert (state, "stopped answering while it tried it" in reason) == ("unreachable", True)
    assert set(fleet.restarts[4:]) == {"triton-0"}
    await fleet.place.until_served("1")
    assert fleet.away_at_once == 1


async def test_models_come_and_go_together(fleet: RestartedFleet) -> None:
    """Two models cost the second server one restart; one that leaves, another; nothing has to be configured for it."""
    for name in ("m", "n"):
        adding_model(fleet.place.repository, name, {"1": 10})
    async with fleet.place.watched():
        await fleet.place.until(default_is("1"))
        await Place(fleet.place.settings, "n").until(default_is("1"))
        assert (fleet.restarts.count("triton-0"), fleet.restarts.count("triton-1")) == (2, 1)
        shutil.rmtree(fleet.place.folder)
        await fleet.place.until(lambda record: record is None)
        await fleet.until_restarted(5)
    await fleet.place.until_served()
    await Place(fleet.place.settings, "n").until_served("1")
    assert (fleet.restarts.count("triton-0"), fleet.restarts.count("triton-1")) == (3, 2)
    assert fleet.away_at_once == 1
    pauses = {change.pause_s for change in fleet.changes if change.phase is PartPhase.RESTARTING}
    assert pauses == {FIRST_PAUSE_S}, "an ordered restart is no crash"


async def test_only_the_process_at_the_address_is_ended(fleet: RestartedFleet) -> None:
    """The local order ends one Triton, by its own start time, and its supervisor has another one there."""
    before = {change.name: change.pid for change in fleet.changes if change.phase is PartPhase.READY}
    await LocalRestart(fleet.place.settings.data_dir).restart(fleet.urls[1])
    await fleet.until_restarted(1)
    assert fleet.restarts == ["triton-1"]
    assert fleet.changes[-1].pid != before["triton-1"]
    os.kill(before["triton-0"] or 0, 0)

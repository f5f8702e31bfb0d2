"""Updates by restarts: which server is restarted when, and what a bad version, or a server that stays away, comes to.

The servers here load a real serving folder as a Triton does at its start; they run no model.
"""

import asyncio
import shutil
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.config import Settings, TritonSettings, WatcherSettings
from pipeline.core.model_config import parse_config
from pipeline.errors import ModelNotReady, ServerUnavailable, SettingsError, StackError
from pipeline.stack.process import RestartPause, RestartPolicy
from pipeline.stack.restart import end_triton
from pipeline.watcher.draft import Wanted
from pipeline.watcher.fleet.check import CheckLimits, NotRestarted
from pipeline.watcher.fleet.restart import Restart
from pipeline.watcher.fleet.restart_orders import RestartCommand
from pipeline.watcher.fleet.strategy import by_reload, chosen_update
from pipeline.watcher.fleet.triton_control import TritonControl
from pipeline.watcher.registration import ModelRegistration, Registered
from pipeline.watcher.repository.scan import scan
from pipeline.watcher.serving.folder import ServingFolder, StagedModel
from schemas.registry import ModelRecord
from tests.watcher.folders import python_model

# A restart takes the fake servers two looks of 50 ms; one that is not back in ten times that is away.
LIMITS = CheckLimits(load_timeout_s=1.0, call_timeout_s=1.0, live_timeout_s=1.0)
BATCHED = (
    'parameters { key: "client_batching" value { string_value: "on" } } version_policy { latest { num_versions: 2 } }'
)
FAILS = "# does not load"
DIES = "# takes the server with it"


class FakeServer:
    """A server that loads a serving folder whenever it starts, and takes no other order.

    Attributes:
        looks_away: how often it is looked for in vain after a restart; None: it does not come back by itself.
        starts: how often it was restarted.
    """

    def __init__(self, address: str, serving: Path) -> None:
        self.address = address
        self.serving = serving
        self.looks_away: int | None = 2
        self.starts = 0
        self._away = 0.0
        self._loaded: dict[str, tuple[Any, dict[str, str]]] = {}
        self._load()

    def restart(self) -> None:
        """As its supervisor does it: it is away, and loads the folder when it is back."""
        self.starts += 1
        self._away = float("inf") if self.looks_away is None else self.looks_away

    def come_back(self) -> None:
        """Somebody mended it."""
        self._away = 0
        self._load()

    async def is_live(self, _: float) -> bool:
        await asyncio.sleep(0)
        if self._away:
            self._away -= 1
            # A start that fails is tried again.
            if not self._away and not self._load():
                self._away = self.looks_away or 1
            return False
        return True

    async def states(self, model_name: str, _: float) -> dict[str, tuple[str, str]]:
        self._check_up()
        _, states = self._loaded.get(model_name, (None, {}))
        return {number: (state, "no weights" if state != "READY" else "") for number, state in states.items()}

    async def is_ready(self, model_name: str, version: str, timeout_s: float) -> bool:
        return (await self.states(model_name, timeout_s)).get(version, ("", ""))[0] == "READY"

    async def serves_any(self, model_name: str, timeout_s: float) -> bool:
        return any(state == "READY" for state, _ in (await self.states(model_name, timeout_s)).values())

    async def config(self, model_name: str, version: str, timeout_s: float) -> Any:
        if not await self.is_ready(model_name, version, timeout_s):
            raise ModelNotReady(self.address, "unknown model")
        return self._loaded[model_name][0]

    def _check_up(self) -> None:
        if self._away:
            raise ServerUnavailable(self.address, "connection refused")

    def _load(self) -> bool:
        loaded: dict[str, tuple[Any, dict[str, str]]] = {}
        for path in self.serving.glob("*/config.pbtxt"):
            config = parse_config(path.read_text()).config
            sources = {
                str(number): (path.parent / str(number) / "model.py").read_text()
                for number in config.version_policy.specific.versions
            }
            if any(DIES in source for source in sources.values()):
                return False
            states = {number: "UNAVAILABLE" if FAILS in source else "READY" for number, source in sources.items()}
            loaded[path.parent.name] = config, states
        self._loaded = loaded
        return True


class FakeOrder:
    """Restarts fake servers, and notes who was away whenever one was.

    Attributes:
        orders: the addresses, in turn.
        refusal: what it says instead of restarting.
        waits: whether it returns when the server is back, as `docker restart` does.
    """

    def __init__(self, servers: Iterable[FakeServer]) -> None:
        self.orders: list[str] = []
        self.refusal = ""
        self.waits = False
        self._servers = {server.address: server for server in servers}

    async def restart(self, address: str) -> None:
        if self.refusal:
            raise NotRestarted(address, self.refusal)
        away = [server.address for server in self._servers.values() if server._away]
        assert away == [], f"{address} is restarted while {away} are away"
        self.orders.append(address)
        self._servers[address].restart()
        while self.waits and not await self._servers[address].is_live(0):
            pass


class Fleet:
    """Three servers, a repository with one model `m`, and the registration that updates them by restarts."""

    def __init__(self, folder: Path) -> None:
        self.repository = folder / "repository"
        self.serving = ServingFolder(folder / "serving")
        self.serving.path.mkdir()
        self.servers = [FakeServer(f"host-{index}:8001", self.serving.path) for index in range(3)]
        self.order = FakeOrder(self.servers)
        self.records: dict[str, ModelRecord] = {}
        self.told: list[ModelRecord] = []
        self.registration = self.make_registration()
        python_model(self.repository, extra=BATCHED)

    @property
    def controls(self) -> list[TritonControl]:
        return cast("list[TritonControl]", self.servers)

    def make_registration(self) -> ModelRegistration:
        """Another watcher's: it remembers nothing."""
        update = Restart(self.controls, self.order, LIMITS)
        return ModelRegistration(
            self.serving, self.controls, LIMITS, update,
            announce=self._announce, now=lambda: datetime.now(UTC), drain=timedelta(0),
        )  # fmt: skip

    async def _announce(self, record: ModelRecord) -> None:
        self.records[record.model_name] = record
        self.told.append(record)

    def publish(self, version: str, source: str, model_name: str = "m") -> None:
        path = self.repository / model_name / version / "model.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)

    async def register(self, *, retries: bool = False) -> dict[str, tuple[str, str]]:
        """A pass over the model `m`: version -> what became of it, and why."""
        _, reports, _ = await self.registration.run(self._wanted(retries=retries)[0])
        return {report.version: (report.state, report.reason) for report in reports}

    async def register_all(self) -> list[Registered]:
        """A pass over all models, as repository_pass.py makes it."""
        drafts = [await self.registration.begin(wanted) for wanted in self._wanted()]
        for draft in drafts:
            await self.registration.try_first(draft)
        return [await self.registration.finish(draft) for draft in drafts]

    def _wanted(self, *, retries: bool = False) -> list[Wanted]:
        return [Wanted(model, self.records.get(model.name), retries) for model in scan(self.repository).models]

    async def served(self, model_name: str = "m") -> list[set[str]]:
        """The versions that each server answers for."""
        return [
            {number for number, (state, _) in (await server.states(model_name, 1)).items() if state == "READY"}
            for server in self.servers
        ]

    @property
    def starts(self) -> list[int]:
        return [server.starts for server in self.servers]

    def staged(self) -> StagedModel:
        found = self.serving.read("m")
        assert found is not None
        return found


@pytest.fixture
async def fleet(tmp_path: Path) -> Fleet:
    """All three serve version 1, after one restart each."""
    made = Fleet(tmp_path)
    assert await made.register() == {"1": ("announced", "")}
    assert made.order.orders == ["host-0:8001", "host-1:8001", "host-2:8001"]
    made.order.orders.clear()
    return made


@pytest.mark.parametrize("waits", [False, True])
async def test_each_server_is_restarted_once_for_a_version(fleet: Fleet, waits: bool) -> None:
    """One after the other, each when the one before is back; a pass without news, by anybody, restarts nobody.

    So it is too where an order returns when its server is back.
    """
    fleet.order.waits = waits
    fleet.publish("2", "VERSION = 2")
    assert await fleet.register() == {"1": ("unchanged", ""), "2": ("announced", "")}
    assert fleet.order.orders == ["host-0:8001", "host-1:8001", "host-2:8001"]
    assert await fleet.served() == [{"1", "2"}] * 3
    fleet.order.orders.clear()
    fleet.registration = fleet.make_registration()
    assert await fleet.register() == {"1": ("unchanged", ""), "2": ("unchanged", "")}
    assert fleet.order.orders == []


async def test_watcher_that_died_is_followed_where_it_was(fleet: Fleet) -> None:
    """What the servers show is where the next watcher goes on: who serves the new content is not restarted again."""
    fleet.publish("2", "VERSION = 2")
    draft = await fleet.registration.begin(fleet._wanted()[0])
    await fleet.registration.try_first(draft)
    assert fleet.order.orders == ["host-0:8001"]
    fleet.registration = fleet.make_registration()
    assert (await fleet.register())["2"] == ("announced", "")
    assert fleet.order.orders == ["host-0:8001", "host-1:8001", "host-2:8001"]


async def test_version_that_does_not_load_meets_one_server(fleet: Fleet) -> None:
    """It is rejected with the server's reason, and that server is restarted without it; the others never know."""
    fleet.publish("2", FAILS)
    outcomes = await fleet.register()
    assert outcomes["2"] == ("rejected", "host-0:8001: is UNAVAILABLE no weights")
    assert outcomes["1"][0] == "unchanged"
    assert fleet.order.orders == ["host-0:8001", "host-0:8001"]
    assert await fleet.served() == [{"1"}] * 3
    assert (await fleet.register())["2"][0] == "rejected"
    assert len(fleet.order.orders) == 2


async def test_version_that_kills_its_server_is_set_aside(fleet: Fleet) -> None:
    """The server comes back without it, no other one meets it, and the second time it is rejected."""
    fleet.publish("2", DIES)
    fleet.servers[0].looks_away = 6
    state, reason = (await fleet.register())["2"]
    assert (state, "host-0:8001 stopped answering while it tried it: did not come back within 1 s" in reason) == (
        "unreachable",
        True,
    )
    assert reason.endswith("it is tried once more")
    assert await fleet.served() == [{"1"}] * 3
    assert (await fleet.register())["2"][0] == "rejected"
    assert await fleet.served() == [{"1"}] * 3
    assert fleet.order.orders == ["host-0:8001"] * 2


async def test_next_server_is_left_alone_while_one_is_away(fleet: Fleet) -> None:
    """A server that does not come back ends the pass, whose report says so; the next pass goes on from there."""
    fleet.publish("2", "VERSION = 2")
    fleet.servers[1].looks_away = None
    outcomes = await fleet.register()
    # Two was good on the first server: the second may have died of it, and is waited for without it.
    assert outcomes["2"][0] == "unreachable"
    assert "is not restarted while host-1:8001 does not answer" in outcomes["1"][1]
    assert fleet.order.orders == ["host-0:8001", "host-1:8001"]
    for _ in range(2):
        await fleet.register()
        assert fleet.order.orders == ["host-0:8001", "host-1:8001"]
    fleet.servers[1].looks_away = 2
    fleet.servers[1].come_back()
    assert (await fleet.register())["2"] == ("announced", "")
    assert await fleet.served() == [{"1", "2"}] * 3


async def test_server_that_is_away_keeps_all_others_up(fleet: Fleet) -> None:
    """Nobody is restarted while any server does not answer, whatever the reason; nothing is announced meanwhile."""
    fleet.publish("2", "VERSION = 2")
    fleet.servers[2].looks_away = None
    fleet.servers[2].restart()
    outcomes = await fleet.register()
    assert outcomes["2"] == ("unreachable", "host-0:8001: is not restarted while host-2:8001 does not answer")
    assert fleet.order.orders == []
    assert set(fleet.records["m"].versions) == {"1"}
    assert set(fleet.staged().versions) == {"1"}, "a server that starts now does not meet what nobody tried"


async def test_order_that_fails_is_told(fleet: Fleet) -> None:
    """The version waits, the servers serve what they served, and the reason is the command's own."""
    fleet.publish("2", "VERSION = 2")
    fleet.order.refusal = "`docker restart a` exited with status 1: no such container"
    assert (await fleet.register())["2"] == ("unreachable", f"host-0:8001: {fleet.order.refusal}")
    assert await fleet.served() == [{"1"}] * 3
    fleet.order.refusal = ""
    assert (await fleet.register())["2"] == ("announced", "")


async def test_content_that_is_replaced_is_told_until_it_is_everywhere(fleet: Fleet) -> None:
    """While one server has other content under a number than the rest, the topic says that it is changing."""
    fleet.publish("1", "VERSION = 1  # mended")
    fleet.servers[1].looks_away = None
    await fleet.register()
    assert fleet.told[-1].versions["1"].changing
    fleet.servers[1].looks_away = 2
    fleet.servers[1].come_back()
    await fleet.register()
    assert not fleet.told[-1].versions["1"].changing
    assert {server.serving for server in fleet.servers} == {fleet.serving.path}
    assert "mended" in (fleet.serving.path / "m" / "1" / "model.py").read_text()


async def test_server_with_another_folder_is_not_restarted_for_ever(fleet: Fleet, tmp_path: Path) -> None:
    """A server that comes back without what is staged is restarted once for it, and the report asks for its folder."""
    shutil.copytree(fleet.serving.path, tmp_path / "elsewhere")
    fleet.servers[0].serving = tmp_path / "elsewhere"
    fleet.publish("2", "VERSION = 2")
    for _ in range(3):
        state, reason = (await fleet.register())["2"]
        assert (state, "is it the serving folder that it serves?" in reason) == ("unreachable", True)
    assert fleet.order.orders == ["host-0:8001"]
    assert await fleet.served() == [{"1"}] * 3


async def test_several_models_cost_the_others_one_restart(fleet: Fleet) -> None:
    """The first server meets each new model by itself; the others start once with all of them, a bad one left out."""
    python_model(fleet.repository, "n", extra=BATCHED)
    python_model(fleet.repository, "o", extra=BATCHED)
    fleet.publish("2", "VERSION = 2")
    fleet.publish("1", FAILS, "o")
    outcomes = {report.model_name + report.version: report.state for _, reports, _ in await fleet.register_all()
                for report in reports}  # fmt: skip
    assert outcomes == {"m1": "unchanged", "m2": "announced", "n1": "announced", "o1": "rejected"}
    assert fleet.starts[1:] == [2, 2], "one at first, one for two models"
    assert fleet.starts[0] == 4, "one at first, one for each model"
    assert await fleet.served("n") == [{"1"}] * 3
    assert await fleet.served("o") == [set()] * 3


async def test_model_that_leaves_costs_those_who_serve_it(fleet: Fleet) -> None:
    """A withdrawn model takes a restart of each server that still serves it, one after the other."""
    shutil.rmtree(fleet.serving.path / "m")
    fleet.servers[0].come_back()
    assert await fleet.registration.withdraw("m") == frozenset()
    assert fleet.order.orders == ["host-1:8001", "host-2:8001"]
    assert await fleet.served() == [set()] * 3


# --- Who restarts a server --------------------------------------------------------------------------------------------


def command(template: str, timeout_s: float = 10.0) -> RestartCommand:
    return RestartCommand(template, {"host-0:8001": "triton-0"}, timeout_s)


async def test_command_is_given_what_it_asks_for(tmp_path: Path) -> None:
    """Fields are replaced word by word, and no shell sees them; what it leaves running is not waited for."""
    seen = tmp_path / "seen"
    script = (
        "import pathlib, subprocess, sys; subprocess.Popen(['sleep', '30']); "
        "pathlib.Path(sys.argv[1]).write_text(' | '.join(sys.argv[2:]))"
    )
    words = "{instance} {address} {host} {port} 'two $HOME words' {{braces}}"
    await command(f'{sys.executable} -c "{script}" {seen} {words}').restart("host-0:8001")
    assert seen.read_text() == "triton-0 | host-0:8001 | host-0 | 8001 | two $HOME words | {braces}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("sh -c 'echo first; echo no such container >&2; exit 3'", "exited with status 3: no such container"),
        ("sh -c 'kill -9 $$'", "exited with status -9: no output"),
        ("sh -c 'echo waiting; sleep 30'", "did not end within 0.5 s (PIPELINE_WATCHER__RESTART_TIMEOUT_S): waiting"),
        ("/nowhere/docker restart {instance}", "`/nowhere/docker restart triton-0` cannot be run: "),
    ],
)
async def test_command_that_fails_says_how(template: str, reason: str) -> None:
    """Exit code and last line are told, a command that hangs is ended, and one that is not there is named."""
    with pytest.raises(NotRestarted) as caught:
        await command(template, 0.5 if "sleep" in template else 10.0).restart("host-0:8001")
    assert reason in str(caught.value)
    assert str(caught.value).startswith("host-0:8001: ")


def test_restart_needs_somebody_who_does_it(tmp_path: Path) -> None:
    """Without a command and without a local stack the start fails, and the line names both settings."""
    fleet = TritonSettings(urls=("host-0:8001",))

    def settings(watcher: WatcherSettings) -> Settings:
        return Settings(data_dir=tmp_path, triton=fleet, watcher=watcher)

    with pytest.raises(SettingsError) as caught:
        chosen_update(settings(WatcherSettings(strategy="restart")))
    for words in ("PIPELINE_WATCHER__STRATEGY", "'restart'", "PIPELINE_WATCHER__RESTART_COMMAND", "host-0:8001"):
        assert words in str(caught.value)
    assert chosen_update(settings(WatcherSettings())) is by_reload
    with_command = settings(WatcherSettings(strategy="restart", restart_command="docker restart {host}"))
    assert chosen_update(with_command)([], LIMITS).brings_all


def test_end_needs_a_running_stack(tmp_path: Path) -> None:
    """Where no stack runs, nothing is ended."""
    with pytest.raises(StackError, match="no stack runs in"):
        end_triton(tmp_path, "127.0.0.1:8001")


def test_restart_that_was_asked_for_is_no_crash() -> None:
    """The supervisor's pause does not grow by ends in order, nor is it forgotten what crashes made of it."""
    pause = RestartPause(RestartPolicy(), clock=lambda: 0.0)
    assert [pause.on_exit(asked=asked) for asked in (True, True, False, False, True, False)] == [
        0.5, 0.5, 0.5, 1.0, 0.5, 2.0,
    ]  # fmt: skip

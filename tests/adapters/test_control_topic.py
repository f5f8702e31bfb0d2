"""Commands to all workers and their replies, on a scripted broker and in virtual time."""

import asyncio
import re
from collections.abc import Callable

import pytest
from aiokafka.errors import RequestTimedOutError

from pipeline.adapters.control_topic import MISSING_LOOK_S, ControlFollower, GroupMember, ask_workers, unanswered
from pipeline.errors import TopicError
from schemas.control import (
    IN_REPLY_TO,
    CacheClearCommand,
    CacheClearReply,
    CacheStatsCommand,
    ControlCommand,
    ControlReply,
)
from tests.adapters.scripted_kafka import GROUP, OPTIONS, TOPIC, ScriptedKafka, script_kafka
from tests.simulation.virtual_time import run_simulated, the_clock

MakeKafka = Callable[[], ScriptedKafka]


@pytest.fixture
def make_kafka(monkeypatch: pytest.MonkeyPatch) -> MakeKafka:
    return script_kafka(monkeypatch)


def clear(command_id: str) -> CacheClearCommand:
    return CacheClearCommand(id=command_id)


def reply_of(worker: str, command_id: str, *partitions: int) -> CacheClearReply:
    return CacheClearReply(id=command_id, worker=worker, partitions=partitions, entries=1, bytes=10)


class Obeying:
    """A worker's side: what it obeyed and what it was told it may have missed.

    Args:
        name: the worker's.
        partitions: of requests, that it has.
    """

    def __init__(self, name: str = "w-1", *partitions: int) -> None:
        self.obeyed: list[str] = []
        self.gaps = 0
        self.bug: Exception | None = None
        self._name, self._partitions = name, partitions
        self.follower = ControlFollower(OPTIONS, TOPIC, self._obey, self._note_gap)
        self._listening = asyncio.Event()

    async def begin(self) -> None:
        """Starts, and returns once it listens."""
        await self.follower.start()
        await self._listening.wait()

    async def reads(self, seconds: float = 2.0) -> list[str]:
        """What it obeyed until this much later."""
        await asyncio.sleep(seconds)
        return self.obeyed

    async def _obey(self, command: ControlCommand) -> ControlReply:
        self.obeyed.append(command.id)
        if self.bug is not None:
            raise self.bug
        return reply_of(self._name, command.id, *self._partitions)

    def _note_gap(self) -> None:
        self.gaps += 1
        self._listening.set()


def replies_in(kafka: ScriptedKafka) -> list[str]:
    """The ids that replies name in their header."""
    return [value.decode() for record in kafka.records for name, value in record.headers if name == IN_REPLY_TO]


def test_follower_begins_at_the_end(make_kafka: MakeKafka) -> None:
    """A worker that starts has nothing to clear: older commands are not done, later ones are, each with its reply."""

    async def scenario() -> None:
        kafka = make_kafka()
        kafka.command(clear("old"))
        worker = Obeying()
        await worker.begin()
        kafka.command(clear("a"))
        kafka.command(CacheStatsCommand(id="b"))
        assert await worker.reads() == ["a", "b"]
        assert (worker.gaps, replies_in(kafka)) == (1, ["a", "b"])
        await worker.follower.stop()
        await worker.follower.stop()
        assert kafka.open_clients == 0

    run_simulated(scenario())


def test_follower_reads_on_after_an_outage(make_kafka: MakeKafka, caplog: pytest.LogCaptureFixture) -> None:
    """Commands of the time without a connection are obeyed after it, in their order, none twice."""

    async def scenario() -> None:
        kafka = make_kafka()
        worker = Obeying()
        await worker.begin()
        kafka.command(clear("a"))
        assert await worker.reads() == ["a"]
        kafka.down = True
        kafka.failures.append(RequestTimedOutError())
        kafka.command(clear("b"))
        kafka.command(clear("c"))
        assert await worker.reads() == ["a"]
        kafka.down = False
        assert await worker.reads() == ["a", "b", "c"]
        assert (worker.gaps, replies_in(kafka)) == (1, ["a", "b", "c"])
        await worker.follower.stop()

    run_simulated(scenario())
    assert f"{TOPIC} cannot be followed, trying again" in caplog.text


def test_lost_reply_costs_no_command(make_kafka: MakeKafka) -> None:
    """A command whose reply cannot be written was obeyed, is not obeyed again, and those after it are not missed."""

    async def scenario() -> None:
        kafka = make_kafka()
        worker = Obeying()
        await worker.begin()
        kafka.refusals.append(RequestTimedOutError())
        kafka.command(clear("a"))
        kafka.command(clear("b"))
        assert await worker.reads() == ["a", "b"]
        assert replies_in(kafka) == ["b"]
        await worker.follower.stop()

    run_simulated(scenario())


@pytest.mark.parametrize("made_anew", [False, True])
def test_missed_commands_are_told(make_kafka: MakeKafka, caplog: pytest.LogCaptureFixture, made_anew: bool) -> None:
    """Where the log's records, or the log itself, are gone since, the worker is told that it may have missed some."""

    async def scenario() -> None:
        kafka = make_kafka()
        for number in range(3):
            kafka.command(clear(f"old-{number}"))
        worker = Obeying()
        await worker.begin()
        kafka.down = True
        kafka.failures.append(RequestTimedOutError())
        await worker.reads()
        if made_anew:
            kafka.records.clear()
        else:
            kafka.command(clear("missed"))
            kafka.begin = 4
        kafka.down = False
        await worker.reads()
        assert (worker.gaps, worker.obeyed) == (2, [])
        kafka.command(clear("a"))
        assert await worker.reads() == ["a"]
        await worker.follower.stop()

    run_simulated(scenario())
    assert "it may have missed commands" in caplog.text


def test_missing_topic_is_told_once(make_kafka: MakeKafka, caplog: pytest.LogCaptureFixture) -> None:
    """A worker on a cluster without the topic says so once, makes none, and obeys from the first command on later."""

    async def scenario() -> None:
        kafka = make_kafka()
        kafka.exists = False
        worker = Obeying()
        await worker.follower.start()
        assert await worker.reads(3 * MISSING_LOOK_S) == []
        kafka.exists = True
        kafka.command(clear("first"))
        assert await worker.reads(2 * MISSING_LOOK_S) == ["first"]
        assert worker.gaps == 0
        await worker.follower.stop()

    run_simulated(scenario())
    assert [message for message in caplog.messages if "pipeline topics create" in message] == caplog.messages
    assert len(caplog.messages) == 1


def test_what_is_no_command_is_skipped(make_kafka: MakeKafka, caplog: pytest.LogCaptureFixture) -> None:
    """Replies are not even read; anything else that is no command is told in the log, and costs nothing more."""

    async def scenario() -> None:
        kafka = make_kafka()
        worker = Obeying()
        await worker.begin()
        kafka.write(b"whatever it says", [(IN_REPLY_TO, b"x")])
        assert await worker.reads() == []
        assert caplog.messages == []
        for value in (None, b"", b"{", b'{"command": "cache.clear", "id": "n", "newer_filter": 1}'):
            kafka.write(value)
        kafka.command(clear("a"))
        assert await worker.reads() == ["a"]
        await worker.follower.stop()

    run_simulated(scenario())
    assert len(caplog.messages) == 4
    assert all("is no command that this worker knows" in message for message in caplog.messages)


def test_bug_costs_one_reply(make_kafka: MakeKafka, caplog: pytest.LogCaptureFixture) -> None:
    """A command that fails is told with its trace and has no reply; the next one is obeyed."""

    async def scenario() -> None:
        kafka = make_kafka()
        worker = Obeying()
        await worker.begin()
        worker.bug = ZeroDivisionError("a bug")
        kafka.command(clear("a"))
        await worker.reads()
        worker.bug = None
        kafka.command(clear("b"))
        assert await worker.reads() == ["a", "b"]
        assert replies_in(kafka) == ["b"]
        await worker.follower.stop()

    run_simulated(scenario())
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_end_of_a_follower_is_told(make_kafka: MakeKafka, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in the following itself does not stop in silence; stopping it afterwards is fine."""

    async def scenario() -> None:
        kafka = make_kafka()
        worker = Obeying()
        await worker.begin()
        kafka.failures.append(ZeroDivisionError("a bug"))
        kafka.command(clear("a"))
        await worker.reads()
        await worker.follower.stop()
        assert (worker.obeyed, kafka.open_clients) == (["a"], 0)

    run_simulated(scenario())
    assert caplog.messages == [f"{TOPIC} is not followed any more"]


def test_asking_ends_with_the_last_reply(make_kafka: MakeKafka) -> None:
    """Every member of the group has answered: nobody is missing, and no time is waited for."""

    async def scenario() -> None:
        kafka = make_kafka()
        kafka.members = [("10.0.0.1", [0, 1]), ("10.0.0.2", [2, 3])]
        workers = [Obeying("w-2", 2, 3), Obeying("w-1", 0, 1)]
        for worker in workers:
            await worker.begin()
        began = the_clock().monotonic()
        asked = await ask_workers(OPTIONS, TOPIC, GROUP, clear("a"), 10)
        assert the_clock().monotonic() - began < 1
        assert asked.replies == (reply_of("w-1", "a", 0, 1), reply_of("w-2", "a", 2, 3))
        assert asked.missing == ()
        for worker in workers:
            await worker.follower.stop()
        assert kafka.open_clients == 0

    run_simulated(scenario())


def test_silent_worker_is_missing(make_kafka: MakeKafka) -> None:
    """Who does not answer in time is told by its place and partitions; what answers another command is no answer."""

    async def scenario() -> None:
        kafka = make_kafka()
        kafka.members = [("10.0.0.1", [0, 1]), ("10.0.0.2", [2, 3])]
        worker = Obeying("w-1", 0, 1)
        await worker.begin()
        kafka.on_record = lambda record: None if record.headers else kafka.reply(reply_of("w-2", "b", 2, 3))
        began = the_clock().monotonic()
        asked = await ask_workers(OPTIONS, TOPIC, GROUP, clear("a"), 3)
        assert the_clock().monotonic() - began == pytest.approx(3, abs=0.1)
        assert asked.replies == (reply_of("w-1", "a", 0, 1),)
        assert [str(member) for member in asked.missing] == ["the worker on 10.0.0.2 with the partitions 2, 3"]
        await worker.follower.stop()

    run_simulated(scenario())


def test_unreadable_reply_is_no_reply(make_kafka: MakeKafka, caplog: pytest.LogCaptureFixture) -> None:
    """A reply that this program cannot read is told, and its worker counts as missing."""

    async def scenario() -> None:
        kafka = make_kafka()
        kafka.members = [("10.0.0.1", None)]
        kafka.on_record = lambda record: None if record.headers else kafka.write(b"{}", [(IN_REPLY_TO, b"a")])
        asked = await ask_workers(OPTIONS, TOPIC, GROUP, clear("a"), 1)
        assert (asked.replies, len(asked.missing)) == ((), 1)

    run_simulated(scenario())
    assert "cannot be read" in caplog.text


def test_group_without_workers_is_not_waited_for(make_kafka: MakeKafka) -> None:
    """Nobody runs: nobody answers and nobody is missing, at once; a coordinator that has just moved is asked again."""

    async def scenario() -> None:
        kafka = make_kafka()
        kafka.codes = [15, 16, 14]
        began = the_clock().monotonic()
        asked = await ask_workers(OPTIONS, TOPIC, GROUP, clear("a"), 10)
        assert (asked.replies, asked.missing) == ((), ())
        assert the_clock().monotonic() - began < 1
        assert len(kafka.records) == 1

    run_simulated(scenario())


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("missing", f"there is no topic {TOPIC}: `pipeline topics create` makes it"),
        ("down", "Kafka at unused:9092 does not answer"),
        ("refused", f"Kafka at unused:9092: .*group {GROUP}"),
        ("loading", "Kafka at unused:9092 gave no answer within 2 s"),
    ],
)
def test_asking_in_vain_is_one_clear_error(make_kafka: MakeKafka, wrong: str, sentence: str) -> None:
    """What keeps a command from being sent is told in a sentence, within the time given."""

    async def scenario() -> None:
        kafka = make_kafka()
        kafka.exists = wrong != "missing"
        kafka.down = wrong == "down"
        kafka.codes = {"refused": [30], "loading": [15] * 10_000}.get(wrong, [])
        with pytest.raises(TopicError, match=sentence):
            await ask_workers(OPTIONS, TOPIC, GROUP, clear("a"), 2)
        assert (kafka.records, kafka.open_clients) == ([], 0)

    run_simulated(scenario())


def members(*partitions: str) -> list[GroupMember]:
    return [GroupMember(f"h-{index}", frozenset(map(int, of))) for index, of in enumerate(partitions)]


@pytest.mark.parametrize(
    ("of_members", "of_replies", "missing"),
    [
        (["01", "23"], ["01", "23"], ""),
        (["01", "23"], ["23"], "0"),
        (["01", "23"], ["01", ""], "1"),
        (["01", ""], ["01", ""], ""),
        (["", "01"], ["01"], "0"),
        (["", ""], ["01", "23"], ""),
        (["", ""], ["01"], "1"),
        (["01", "23"], ["0", "123"], ""),
        ([], ["01"], ""),
    ],
)
def test_members_are_found_by_their_partitions(of_members: list[str], of_replies: list[str], missing: str) -> None:
    """A reply counts for the member that has its partitions; idle members take what is left, one reply each."""
    replies = [reply_of(f"w-{index}", "a", *map(int, of)) for index, of in enumerate(of_replies)]
    found = unanswered(members(*of_members), replies)
    assert re.sub("h-", "", "".join(member.host for member in found)) == missing

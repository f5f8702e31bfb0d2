"""`cache` from outside: help, usage, the order of a clear, and how replies are shown. No servers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.adapters import control_topic
from pipeline.adapters.control_topic import Asked, GroupMember
from pipeline.adapters.redis import RedisSharedCache
from pipeline.cli.cache_view import request_rows, usage_rows
from pipeline.cli.main import app
from pipeline.errors import PipelineError
from schemas.control import (
    CacheClearCommand,
    CacheClearReply,
    CacheRequests,
    CacheStatsReply,
    CacheUsage,
    ControlCommand,
    SharedCacheCounts,
)

SILENT = GroupMember("10.0.0.2", frozenset({2, 3}))


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No stack runs here; Kafka is configured, and nobody listens there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPELINE_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")


def run(*arguments: str, text: str | None = None) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command line."""
    result = CliRunner().invoke(app, ("cache", *arguments), input=text)
    return result.exit_code, result.stdout, result.stderr


def usage(model: str, version: str, tenant: str, entries: int, size: int) -> CacheUsage:
    return CacheUsage(model_name=model, model_version=version, tenant=tenant, entries=entries, bytes=size)


def stats_reply(worker: str, *held: CacheUsage, **changes: Any) -> CacheStatsReply:
    """A worker's reply in which only some members matter."""
    members: dict[str, Any] = {
        "id": "a",
        "worker": worker,
        "partitions": (0, 1),
        "entries": sum(of.entries for of in held),
        "bytes": sum(of.bytes for of in held),
        "bytes_max": 1000,
        **dict.fromkeys(("evicted", "expired", "refused", "cleared", "retired"), 0),
        "requests": (),
        "usage": held,
    }
    return CacheStatsReply(**(members | changes))


class ScriptedPipeline:
    """Workers and a shared cache that note what they are asked, in order.

    Attributes:
        asked: `workers` or `shared`, and the filters.
        answers: to each command to the workers, one after the other.
        shared: what the shared cache says.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: Sequence[Asked], shared: int | PipelineError) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.ids: set[str] = set()
        self._answers, self._shared = list(answers), shared
        monkeypatch.setattr(control_topic, "ask_workers", self._ask)
        monkeypatch.setattr(RedisSharedCache, "clear", self._clear_shared)

    async def _ask(self, _: Any, topic: str, group: str, command: ControlCommand, timeout_s: float) -> Asked:
        assert (topic, group, timeout_s) == ("inference.control", "inference-worker", 10.0)
        filters = command.model_dump(exclude={"command", "id"}, exclude_none=True)
        self.asked.append(("workers", filters))
        self.ids.add(command.id)
        return self._answers.pop(0)

    async def _clear_shared(self, **filters: str | None) -> int:
        self.asked.append(("shared", {name: text for name, text in filters.items() if text is not None}))
        if isinstance(self._shared, PipelineError):
            raise self._shared
        return self._shared


def cleared(*workers: tuple[str, int, int], missing: tuple[GroupMember, ...] = ()) -> Asked:
    replies = [
        CacheClearReply(id="a", worker=worker, partitions=(0,), entries=entries, bytes=size)
        for worker, entries, size in workers
    ]
    return Asked(tuple(replies), missing)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("clear", "--version", "2"), "--version needs --model"),
        (("clear", "--version", ""), "--version needs --model"),
        (("clear", "--version", "latest", "--model", "digits"), "--version latest: expected a version's number"),
        (("clear", "--version", "", "--model", "digits"), "expected a version's number"),
        (("stats", "--timeout", "0"), "--timeout"),
        (("clear", "digits"), "unexpected extra argument"),
    ],
)
def test_wrong_usage_exits_with_two(arguments: tuple[str, ...], sentence: str) -> None:
    """What cannot be meant is told apart from what failed, before anything is asked of anybody."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert sentence in " ".join(err.split())


@pytest.mark.parametrize("arguments", [("stats",), ("stats", "--json"), ("clear", "--yes")])
def test_unreachable_kafka_is_one_line(arguments: tuple[str, ...]) -> None:
    """A Kafka that does not answer is named by its address."""
    assert run(*arguments) == (1, "", "pipeline: Kafka at 127.0.0.1:1 does not answer\n")


def test_clear_of_everything_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a filter a person says yes or nothing happens; --yes or a filter is answer enough."""
    scripted = ScriptedPipeline(monkeypatch, [cleared(("w-1", 1, 10))] * 3, 0)
    code, _, err = run("clear", text="n\n")
    assert (code, scripted.asked) == (1, [])
    assert "all stored answers, of all models and tenants" in err
    assert run("clear", text="y\n")[0] == 0
    assert run("clear", "--yes")[0] == 0
    assert run("clear", "--tenant", "")[0] == 0
    assert scripted.asked == [("workers", {}), ("workers", {}), ("workers", {"tenant": ""})]


def test_clear_leaves_nothing_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared cache is cleared between two rounds over the workers, all with the same filters; sums are shown."""
    monkeypatch.setenv("PIPELINE_REDIS__URL", "redis://127.0.0.1:1")
    rounds = [cleared(("w-1", 5, 500), ("w-2", 1, 100)), cleared(("w-1", 2, 200), ("w-2", 0, 0))]
    scripted = ScriptedPipeline(monkeypatch, rounds, 7)
    code, out, err = run("clear", "--model", "digits", "--version", "2", "--tenant", "acme")
    filters = {"model_name": "digits", "model_version": "2", "tenant": "acme"}
    assert scripted.asked == [("workers", filters), ("shared", filters), ("workers", filters)]
    assert len(scripted.ids) == 2, "each round is a command of its own"
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["cleared", "entries", "bytes"], ["w-1", "7", "700"], ["w-2", "1", "100"], ["shared", "cache", "7"],
    ]  # fmt: skip


def test_clear_counts_who_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that answers only the second time counts as missing: what it held may be in the shared cache again."""
    monkeypatch.setenv("PIPELINE_REDIS__URL", "redis://127.0.0.1:1")
    rounds = [cleared(("w-1", 5, 500), missing=(SILENT,)), cleared(("w-1", 0, 0), ("w-2", 3, 300))]
    ScriptedPipeline(monkeypatch, rounds, 7)
    code, out, err = run("clear", "--yes", "--json")
    assert (code, err) == (1, "no answer: the worker on 10.0.0.2 with the partitions 2, 3\n")
    assert json.loads(out) == {
        "workers": [{"worker": "w-1", "entries": 5, "bytes": 500}, {"worker": "w-2", "entries": 3, "bytes": 300}],
        "shared": {"entries": 7},
        "missing": [{"host": "10.0.0.2", "partitions": [2, 3]}],
    }


def test_shared_cache_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers are cleared all the same, and the exit code says that not everything was."""
    monkeypatch.setenv("PIPELINE_REDIS__URL", "redis://127.0.0.1:1")
    scripted = ScriptedPipeline(monkeypatch, [cleared(("w-1", 5, 500))] * 2, PipelineError("it is away"))
    code, out, err = run("clear", "--yes", "--json")
    assert (code, err, json.loads(out)["shared"]) == (1, "it is away\n", None)
    assert [name for name, _ in scripted.asked] == ["workers", "shared", "workers"]


@pytest.mark.parametrize("command", ["stats", "clear"])
@pytest.mark.parametrize(("missing", "sentence"), [((), "no worker runs"), ((SILENT,), "no worker answered")])
def test_nobody_is_told_from_silence(
    monkeypatch: pytest.MonkeyPatch, command: str, missing: tuple[GroupMember, ...], sentence: str
) -> None:
    """No worker at all is no failure; one that does not answer is."""
    ScriptedPipeline(monkeypatch, [Asked((), missing)], 0)
    code, out, _ = run(command, *(["--yes"] if command == "clear" else []))
    assert (code, out.strip()) == (len(missing), sentence)


def test_usage_adds_up_over_workers() -> None:
    """Each model, version and tenant is one row, the largest first."""
    replies = [
        stats_reply("w-1", usage("digits", "2", "", 2, 25), usage("digits", "1", "acme", 1, 10)),
        stats_reply("w-2", usage("digits", "1", "acme", 3, 20)),
    ]
    assert usage_rows(replies) == [("digits", "1", "acme", 4, 30), ("digits", "2", "", 2, 25)]


def test_hit_rate_is_of_those_that_asked_the_cache() -> None:
    """Hits of all but the bypassed requests; nothing to divide by is no rate."""
    first = CacheRequests(model_name="digits", hits=6, misses=1, coalesced=1, bypassed=90)
    second = CacheRequests(model_name="digits", misses=1, refreshes=1)
    off = CacheRequests(model_name="bypassing", bypassed=3)
    replies = [stats_reply("w-1", requests=(off,)), stats_reply("w-2", requests=(first, second))]
    assert request_rows(replies) == [("digits", 6, 2, 1, 1, 90, 0.6), ("bypassing", 0, 0, 0, 0, 3, None)]


def test_stats_are_shown_for_people_and_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables with the sums of all workers, and the same as JSON; who did not answer is on standard error alone."""
    shared = SharedCacheCounts(
        look_ups={"miss": 4, "hit": 3}, writes={}, errors={"timeout": 2}, refused_entries={}, bytes={}, saved_bytes=0,
        queue_bytes=0, usable=False,
    )  # fmt: skip
    met = CacheRequests(model_name="digits", hits=3, misses=1)
    asked = Asked(
        (
            stats_reply("w-1", usage("digits", "1", "acme", 4, 30), requests=(met,), shared=shared, usage_left_off=9),
            stats_reply("w-2", usage("digits", "1", "", 1, 5), evicted=8, partitions=(2,)),
        ),
        (SILENT,),
    )
    ScriptedPipeline(monkeypatch, [asked, asked], 0)
    code, out, err = run("stats")
    assert (code, err) == (1, "no answer: the worker on 10.0.0.2 with the partitions 2, 3\n")
    lines = [line.split() for line in out.splitlines()]
    for expected in (
        "digits 1 acme 4 30", "and 9 smaller ones of single workers", "digits 3 1 0 0 0 0.75",
        "w-1 0 1 4 30 1000 0 0 0 0 0", "w-2 2 1 5 1000 8 0 0 0 0", "all 5 35 2000 8 0 0 0 0",
        "w-1 no hit 3 miss 4 timeout 2",
    ):  # fmt: skip
        assert expected.split() in lines, out
    code, out, _ = run("stats", "--json")
    document = json.loads(out)
    assert code == 1
    assert document["usage"][0] == {
        "model_name": "digits", "model_version": "1", "tenant": "acme", "entries": 4, "bytes": 30,
    }  # fmt: skip
    assert document["requests"][0]["hit_rate"] == 0.75
    assert [worker["worker"] for worker in document["workers"]] == ["w-1", "w-2"]
    assert document["missing"] == [{"host": "10.0.0.2", "partitions": [2, 3]}]


def test_command_of_a_clear_names_only_its_filters() -> None:
    """What is not asked for is not in the record, so that a worker of another version may refuse what it knows not."""
    command = CacheClearCommand(id="a", model_name="digits")
    assert json.loads(command.model_dump_json(exclude_none=True)) == {
        "command": "cache.clear", "id": "a", "model_name": "digits",
    }  # fmt: skip

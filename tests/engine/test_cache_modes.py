"""Every cell of the table in docs/caching.md: what a request asks of the cache, and what it meets there."""

import asyncio
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.answer import StoredAnswer
from pipeline.core.cache_key import CacheScope
from tests.simulation.shared_cache import FakeSharedCache, FakeSharedServer
from tests.simulation.system import System, code_of, make_system, request
from tests.simulation.virtual_time import settle, simulated

DOCUMENT = Path(__file__).parents[2] / "docs" / "caching.md"
SITUATIONS = (
    "nothing is stored", "stored here 5 s ago", "stored here 50 s ago", "shared, stored 5 s ago",
    "shared, stored 50 s ago", "the same is running", "the same is running with `no-store`",
)  # fmt: skip
TTL_S = 60.0


def cells() -> Iterator[tuple[str, str, str]]:
    """Returns the table's cells: what is asked, what is met, what comes of it."""
    lines = iter(DOCUMENT.read_text().splitlines())
    head = next(line for line in lines if line.startswith("| request |"))
    assert tuple(_split(head)[1:]) == SITUATIONS
    next(lines)  # the line under the head
    for row in map(_split, takewhile(lambda line: line.startswith("|"), lines)):
        for situation, cell in zip(SITUATIONS, row[1:], strict=True):
            yield row[0], situation, cell


def _split(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def members(asked: str) -> dict[str, Any]:
    """Returns the members that a row's first cell stands for."""
    words = re.findall(r"`([^`]*)`", asked)
    control = ", ".join(word for word in words if not word.startswith("enable_cache"))
    found: dict[str, Any] = {"cache_control": control} if control else {}
    return found | ({"enable_cache": False} if "enable_cache: false" in words else {})


class Met:
    """A system in a situation; `stored` sees every answer that its own cache is given."""

    def __init__(self) -> None:
        self.server = FakeSharedServer()
        self.stored: list[StoredAnswer] = []
        self.system = self._make()

    def _make(self) -> System:
        system = make_system(shared=FakeSharedCache(self.server), ttl_s=TTL_S)
        put = system.cache.put

        def watched(key: bytes, value: StoredAnswer, expires_at: float, scope: CacheScope) -> None:
            self.stored.append(value)
            put(key, value, expires_at, scope)

        system.cache.put = watched  # type: ignore[method-assign]
        return system

    async def bring_about(self, situation: str) -> "asyncio.Task[Any] | None":
        """Lets the situation come; the request that is running in it, if any."""
        if "running" in situation:
            control = "no-store" if "no-store" in situation else None
            self.system.server.latency_s = 1.0
            running = self.system.start(request(7, cache_control=control))
            await asyncio.sleep(0.1)  # the shared cache was asked, the call is out
            return running
        if "stored" in situation and situation != "nothing is stored":
            await self.system.ask(request(7))
            await asyncio.sleep(float(re.findall(r"(\d+) s ago", situation)[0]))
            if situation.startswith("shared"):
                self.system = self._make()
        self.stored.clear()
        return None


@pytest.mark.parametrize(("asked", "situation", "cell"), list(cells()))
@simulated
async def test_every_cell_of_the_table_is_true(asked: str, situation: str, cell: str) -> None:
    """The documented cache_status, whether the answer is stored, and how many inferences it costs, are what happens."""
    met = Met()
    running = await met.bring_about(situation)
    calls = met.system.calls
    task = met.system.start(request(7, **members(asked)))
    answer = await task
    if running is not None:
        await running
    await settle()
    status = code_of(answer) or str(answer.cache_status)
    found = f"{status} {'+ ' if met.stored else ''}{met.system.calls - calls}"
    assert found == cell
    if answer.cache_status == "hit":
        assert answer.age_s == pytest.approx(50 if "50 s" in situation else 5, abs=0.2)


def test_table_has_every_combination() -> None:
    """Each word alone, each pair of them, and the switch are rows; each has a cell for every situation."""
    found = {asked for asked, _, _ in cells()}
    assert len(found) == 13
    assert len(list(cells())) == 13 * len(SITUATIONS)

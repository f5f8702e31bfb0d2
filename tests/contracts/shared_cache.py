"""What every shared cache does, whatever keeps the entries: the port `pipeline.ports.SharedCache`."""

import asyncio
from collections.abc import Awaitable, Callable, Sized
from typing import Any

import pytest

from pipeline.core.answer import StoredAnswer, stored_answer
from pipeline.core.cache_key import CacheScope
from pipeline.core.shared_entry import entry_name
from pipeline.errors import PipelineError
from pipeline.ports import SharedAnswer, SharedCache
from schemas.tensor import Tensor

SCOPE = CacheScope(None, "digits", "2", "f1")
PREFIX = "contract."
# Far above any budget that these tests give.
_ANSWERED_S = 5.0


def an_answer(number: int, stored_at: float, size: int = 16) -> StoredAnswer:
    """An answer that is told from others by its bytes."""
    raw = number.to_bytes(8, "little") * max(size // 8, 1)
    text = Tensor("text", "BYTES", (2, 1), b"\3\0\0\0a\xffb\0\0\0\0")
    return stored_answer([Tensor("y", "UINT8", (len(raw),), raw), text], stored_at=stored_at, instance="triton-1")


def a_key(number: int) -> bytes:
    """A key as the engine builds them: 32 bytes."""
    return number.to_bytes(32, "big")


class SharedWorld:
    """One place where entries are kept, and the processes that use it. The implementation's tests fill it in.

    Args:
        monotonic: the seconds that answers are dated with.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.monotonic = monotonic
        self.won: list[SharedAnswer] = []
        self.told_twice = 0

    def make_cache(self, prefix: str = PREFIX) -> SharedCache:
        """One more process's cache; all of them are closed at the end."""
        raise NotImplementedError

    async def put_bytes(self, name: str, value: bytes) -> None:
        """Somebody writes these bytes under this name, for a minute."""
        raise NotImplementedError

    async def get_bytes(self, name: str) -> bytes | None:
        """What is kept under this name."""
        raise NotImplementedError

    async def go_down(self) -> None:
        """From now on nobody answers."""
        raise NotImplementedError

    async def find(self, cache: SharedCache, number: int, scope: CacheScope = SCOPE) -> SharedAnswer | None:
        """One look-up."""
        told: asyncio.Future[SharedAnswer | None] = asyncio.get_running_loop().create_future()

        def found(shared: SharedAnswer | None) -> None:
            if told.done():
                self.told_twice += 1
            else:
                told.set_result(shared)

        assert cache.look_up(a_key(number), scope, found)
        assert not told.done(), "told inside the call"
        return await asyncio.wait_for(told, _ANSWERED_S)

    async def put(self, cache: SharedCache, number: int, **changes: Any) -> StoredAnswer:
        """One answer stored, and waited for until it is found."""
        answer: StoredAnswer = changes.pop("answer", None) or an_answer(number, self.monotonic())
        arguments: dict[str, Any] = {
            "key": a_key(number), "scope": SCOPE, "ttl_s": 60.0, "replace": False, "winner": self.won.append,
        } | changes  # fmt: skip
        name = entry_name(PREFIX, arguments["scope"], arguments["key"])
        before = await self.get_bytes(name) if arguments["replace"] else None
        cache.store(answer=answer, **arguments)
        await self.until(lambda held: held is not None and held != before, name)
        return answer

    async def until(self, condition: Callable[[bytes | None], bool], name: str) -> None:
        """Waits until what is kept under this name is so."""
        async with asyncio.timeout(_ANSWERED_S):
            while True:
                if condition(await self.get_bytes(name)):
                    return
                await asyncio.sleep(0.002)

    async def until_length(self, length: int, told: Sized) -> None:
        """Waits until so many were told."""
        async with asyncio.timeout(_ANSWERED_S):
            while True:
                if len(told) >= length:
                    return
                await asyncio.sleep(0.002)


Scenario = Callable[[SharedWorld], Awaitable[None]]


class SharedCacheContract:
    """Inherit, and run each test's coroutine in a world of its own."""

    def run(self, test: Scenario) -> None:
        """Runs a test; errors that nobody took fail it, and so does `told_twice` at its end."""
        raise NotImplementedError

    def test_unknown_key_is_told_as_nothing(self) -> None:
        """What was never stored is None, later, and no error."""

        async def test(world: SharedWorld) -> None:
            assert await world.find(world.make_cache(), 1) is None

        self.run(test)

    def test_answer_comes_back_in_another_process(self) -> None:
        """What one stored, another finds: the same bytes of every tensor, and who computed them."""

        async def test(world: SharedWorld) -> None:
            stored = await world.put(world.make_cache(), 1)
            found = await world.find(world.make_cache(), 1)
            assert found is not None
            assert found.answer.tensors == stored.tensors
            assert (found.answer.instance, found.answer.json) == ("triton-1", stored.json)

        self.run(test)

    def test_age_counts_from_the_computing(self) -> None:
        """An answer's age is that of its outputs, not of its storing, and its own clock agrees with it."""

        async def test(world: SharedWorld) -> None:
            await world.put(world.make_cache(), 1, answer=an_answer(1, world.monotonic() - 30.0))
            found = await world.find(world.make_cache(), 1)
            assert found is not None
            assert 30.0 <= found.age_s < 35.0
            assert found.answer.stored_at + found.age_s == pytest.approx(world.monotonic(), abs=1.0)
            assert 50.0 < found.left_s <= 60.0

        self.run(test)

    def test_entry_ends_with_its_ttl(self) -> None:
        """An answer is found until its ttl is over, and not after."""

        async def test(world: SharedWorld) -> None:
            await world.put(world.make_cache(), 1, ttl_s=0.2)
            cache = world.make_cache()
            async with asyncio.timeout(_ANSWERED_S):
                while (found := await world.find(cache, 1)) is not None:
                    assert 0.0 < found.left_s <= 0.2
                    await asyncio.sleep(0.02)

        self.run(test)

    def test_first_writer_wins(self) -> None:
        """A second answer for the same key does not replace the first one, and its writer is told that one."""

        async def test(world: SharedWorld) -> None:
            first = await world.put(world.make_cache(), 1)
            cache, second = world.make_cache(), an_answer(2, world.monotonic())
            cache.store(a_key(1), SCOPE, second, 60.0, replace=False, winner=world.won.append)
            await world.until_length(1, world.won)
            assert world.won[0].answer.tensors == first.tensors
            found = await world.find(cache, 1)
            assert found is not None
            assert found.answer.tensors == first.tensors
            assert len(world.won) == 1

        self.run(test)

    def test_replacing_writer_wins(self) -> None:
        """An answer that was computed anew takes the place of the older one, and nobody is told another."""

        async def test(world: SharedWorld) -> None:
            cache = world.make_cache()
            await world.put(cache, 1, answer=an_answer(1, world.monotonic() - 30.0))
            second = await world.put(cache, 1, answer=an_answer(2, world.monotonic()), replace=True)
            found = await world.find(cache, 1)
            assert found is not None
            assert found.answer.tensors == second.tensors
            assert found.age_s < 10.0
            assert not world.won

        self.run(test)

    def test_large_answer_comes_back(self) -> None:
        """Half a megabyte is an answer like others."""

        async def test(world: SharedWorld) -> None:
            stored = await world.put(world.make_cache(), 1, answer=an_answer(1, world.monotonic(), size=500_000))
            found = await world.find(world.make_cache(), 1)
            assert found is not None
            assert found.answer.tensors == stored.tensors

        self.run(test)

    def test_many_look_ups_do_not_mix(self) -> None:
        """Look-ups at the same time get each their own answer."""

        async def test(world: SharedWorld) -> None:
            cache = world.make_cache()
            stored = {number: await world.put(cache, number) for number in range(0, 60, 2)}
            found = await asyncio.gather(*(world.find(cache, number) for number in range(60)))
            for number, shared in enumerate(found):
                assert (shared.answer.tensors if shared else None) == (
                    stored[number].tensors if number in stored else None
                )

        self.run(test)

    @pytest.mark.parametrize("value", [b"", b"junk", b"\x89IA\x02" + bytes(200), b"\x89IA\x01" + bytes(20)])
    def test_unreadable_entry_is_nothing(self, value: bytes) -> None:
        """Foreign bytes under a key of ours are no answer, and the next one that is computed takes their place."""

        async def test(world: SharedWorld) -> None:
            cache, name = world.make_cache(), entry_name(PREFIX, SCOPE, a_key(1))
            await world.put_bytes(name, value)
            assert await world.find(cache, 1) is None
            stored = an_answer(1, world.monotonic())
            cache.store(a_key(1), SCOPE, stored, 60.0, replace=False, winner=world.won.append)
            await world.until(lambda held: held != value, name)
            found = await world.find(cache, 1)
            assert found is not None
            assert found.answer.tensors == stored.tensors
            assert not world.won

        self.run(test)

    def test_entry_of_another_key_is_nothing(self) -> None:
        """An entry that was copied under another key answers nothing there."""

        async def test(world: SharedWorld) -> None:
            cache = world.make_cache()
            await world.put(cache, 1)
            entry = await world.get_bytes(entry_name(PREFIX, SCOPE, a_key(1)))
            assert entry is not None
            await world.put_bytes(entry_name(PREFIX, SCOPE, a_key(2)), entry)
            assert await world.find(cache, 2) is None

        self.run(test)

    @pytest.mark.parametrize(
        ("wanted", "left"),
        [
            ({}, []),
            ({"model_name": "digits"}, ["m*"]),
            ({"model_name": "m*"}, ["digits", "digits3", "acme"]),
            ({"model_name": "digits", "model_version": "3"}, ["digits", "m*", "acme"]),
            ({"tenant": ""}, ["acme"]),
            ({"tenant": "acme"}, ["digits", "digits3", "m*"]),
            ({"tenant": "acm*"}, ["digits", "digits3", "m*", "acme"]),
        ],
    )
    def test_clear_removes_what_is_named(self, wanted: dict[str, str], left: list[str]) -> None:
        """Answers of the tenant, model and version go, glob characters are letters, and others' answers stay."""
        scopes = {
            "digits": CacheScope(None, "digits", "2", "f"),
            "digits3": CacheScope(None, "digits", "3", "f"),
            "m*": CacheScope(None, "m*", "2", "f"),
            "acme": CacheScope("acme", "digits", "2", "f"),
        }

        async def test(world: SharedWorld) -> None:
            cache = world.make_cache()
            for scope in scopes.values():
                await world.put(cache, 1, scope=scope)
            assert await cache.clear(**wanted) == len(scopes) - len(left)
            assert [name for name, scope in scopes.items() if await world.find(cache, 1, scope)] == left

        self.run(test)

    def test_pipelines_do_not_meet(self) -> None:
        """Pipelines of other prefixes share a server and nothing else."""

        async def test(world: SharedWorld) -> None:
            await world.put(world.make_cache(), 1)
            other = world.make_cache("other.")
            assert await world.find(other, 1) is None
            assert await other.clear() == 0
            assert await world.find(world.make_cache(), 1) is not None

        self.run(test)

    def test_nobody_there_is_nothing_in_time(self) -> None:
        """While nobody answers a look-up is told None or is not asked, a store is forgotten, and nothing is raised."""

        async def test(world: SharedWorld) -> None:
            cache = world.make_cache()
            await world.put(cache, 1)
            await world.go_down()
            told: list[SharedAnswer | None] = []
            asked = 0
            for number in range(40):
                asked += cache.look_up(a_key(number), SCOPE, told.append)
                cache.store(
                    a_key(number),
                    SCOPE,
                    an_answer(1, world.monotonic()),
                    60.0,
                    replace=False,
                    winner=world.won.append,
                )
            await world.until_length(asked, told)
            assert asked > 0
            assert told == [None] * asked
            assert not world.won

        self.run(test)

    def test_clear_says_that_nobody_is_there(self) -> None:
        """Clearing is asked for by somebody: it is told that it was not done."""

        async def test(world: SharedWorld) -> None:
            cache = world.make_cache()
            await world.go_down()
            with pytest.raises(PipelineError, match="cannot be cleared"):
                await cache.clear()

        self.run(test)

    def test_closing_tells_everybody_once(self) -> None:
        """Look-ups that wait when it is closed are told None, once; after it nothing is asked, stored or raised."""

        async def test(world: SharedWorld) -> None:
            cache = world.make_cache()
            told: list[SharedAnswer | None] = []
            assert all(cache.look_up(a_key(number), SCOPE, told.append) for number in range(10))
            await cache.close()
            assert told == [None] * 10
            assert not cache.look_up(a_key(1), SCOPE, told.append)
            cache.store(a_key(1), SCOPE, an_answer(1, 0.0), 60.0, replace=True, winner=world.won.append)
            await cache.close()
            assert len(told) == 10

        self.run(test)

    def test_closing_writes_what_waits(self) -> None:
        """A worker that stops leaves its last answers to the next one."""

        async def test(world: SharedWorld) -> None:
            cache = world.make_cache()
            cache.store(a_key(1), SCOPE, an_answer(1, world.monotonic()), 60.0, replace=False, winner=world.won.append)
            await cache.close()
            assert await world.find(world.make_cache(), 1) is not None

        self.run(test)

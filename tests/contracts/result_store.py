"""What every store of results does, whatever keeps them: the port `pipeline.ports.ResultStore`; and one in memory."""

from collections.abc import Sequence

from pipeline.core.stored_result import Pending, StoredResult, decode_entry, encode_entry, name_of
from pipeline.errors import ResultStoreError
from pipeline.ports import ResultStore

DIGEST = bytes(range(16))
OTHER = bytes(16)


def a_name(number: int) -> bytes:
    """A request's name, another for each number."""
    return name_of("acme", f"r-{number}")


def a_result(number: int, size: int = 100, *, json_bytes: int = 0) -> StoredResult:
    """A result that is told from others by its bytes, of this size."""
    value = (b'{"id":"r-%d"}' % number).ljust(size, b"\0")[:size]
    return StoredResult(DIGEST, json_bytes, value)


class ResultStoreContract:
    """Inherit, and make the store."""

    async def make_store(self) -> ResultStore:
        """An empty store, whose entries outlive the test."""
        raise NotImplementedError

    async def test_unknown_name_is_nothing(self) -> None:
        """What nobody has reserved or kept is None."""
        store = await self.make_store()
        assert await store.find([a_name(1), a_name(2)]) == [None, None]
        assert await store.find([]) == []
        await store.close()

    async def test_first_reservation_counts(self) -> None:
        """The first to reserve is told that nothing was there; later ones get its digest, and change nothing."""
        store = await self.make_store()
        assert await store.reserve(a_name(1), DIGEST) is None
        assert await store.reserve(a_name(1), OTHER) == Pending(DIGEST)
        assert await store.find([a_name(1)]) == [Pending(DIGEST)]
        await store.close()

    async def test_kept_bytes_come_back(self) -> None:
        """A result is given as it was kept, JSON or binary, empty JSON lengths and zero bytes included."""
        store = await self.make_store()
        results = [(a_name(number), a_result(number, json_bytes=number)) for number in range(3)]
        await store.keep(results)
        assert await store.find([name for name, _ in results]) == [result for _, result in results]
        await store.close()

    async def test_result_takes_the_place_of_a_reservation(self) -> None:
        """A kept result replaces its request's reservation, whatever digest that has."""
        store = await self.make_store()
        await store.reserve(a_name(1), OTHER)
        await store.keep([(a_name(1), a_result(1))])
        assert await store.find([a_name(1)]) == [a_result(1)]
        await store.close()

    async def test_first_result_of_a_name_wins(self) -> None:
        """A later result of the same name is ignored, in one call and in another."""
        store = await self.make_store()
        await store.keep([(a_name(1), a_result(1)), (a_name(1), a_result(2))])
        await store.keep([(a_name(1), a_result(3))])
        assert await store.find([a_name(1)]) == [a_result(1)]
        await store.close()

    async def test_reservation_never_hides_a_result(self) -> None:
        """Who reserves what is answered already is given the result, and it stays."""
        store = await self.make_store()
        await store.keep([(a_name(1), a_result(1))])
        assert await store.reserve(a_name(1), DIGEST) == a_result(1)
        assert await store.find([a_name(1)]) == [a_result(1)]
        await store.close()

    async def test_release_takes_back_its_own_reservation(self) -> None:
        """A reservation is taken back by its digest alone; others', and results, stay."""
        store = await self.make_store()
        await store.reserve(a_name(1), DIGEST)
        await store.release(a_name(1), OTHER)
        assert await store.find([a_name(1)]) == [Pending(DIGEST)]
        await store.release(a_name(1), DIGEST)
        assert await store.find([a_name(1)]) == [None]
        await store.keep([(a_name(1), a_result(1))])
        await store.release(a_name(1), DIGEST)
        assert await store.find([a_name(1)]) == [a_result(1)]
        await store.close()

    async def test_large_results_come_back_whole(self) -> None:
        """Results of every size around the pieces that they travel in are given bit for bit, among small ones."""
        store = await self.make_store()
        sizes = [65_514, 65_515, 65_516, 65_517, 65_536, (1 << 20) - 21, 1 << 20, (3 << 20) + 7, 16]
        results = [(a_name(number), a_result(number, size)) for number, size in enumerate(sizes)]
        await store.keep(results)
        assert await store.find([name for name, _ in results]) == [result for _, result in results]
        await store.close()

    async def test_names_are_compared_whole(self) -> None:
        """Names that differ in one bit are different names."""
        store = await self.make_store()
        name = a_name(1)
        await store.keep([(name, a_result(1))])
        others = [bytes([*name[:at], name[at] ^ 1, *name[at + 1 :]]) for at in range(len(name))]
        assert await store.find(others) == [None] * len(others)
        await store.close()

    async def test_close_twice_is_once(self) -> None:
        """Closing is idempotent, used or not."""
        store = await self.make_store()
        await store.close()
        await store.close()


class MemoryResultStore:
    """A store in memory, entries as bytes.

    Attributes:
        entries: what it holds.
        away: every call raises while it is set.
        full: results from this size on find no room; None: all do.
    """

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.away = False
        self.full: int | None = None
        self.finds = 0

    def _check(self) -> None:
        if self.away:
            raise ResultStoreError("the store is away")

    def _entry(self, name: bytes) -> Pending | StoredResult | None:
        return decode_entry(self.entries[name]) if name in self.entries else None

    async def reserve(self, name: bytes, digest: bytes) -> Pending | StoredResult | None:
        self._check()
        before = self._entry(name)
        if before is None:
            self.entries[name] = encode_entry(Pending(digest))
        return before

    async def release(self, name: bytes, digest: bytes) -> None:
        self._check()
        if self._entry(name) == Pending(digest):
            del self.entries[name]

    async def keep(self, results: Sequence[tuple[bytes, StoredResult]]) -> None:
        self._check()
        from pipeline.adapters.redis_result_store import ResultRefused

        for name, result in results:
            if self.full is not None and len(result.value) >= self.full:
                raise ResultRefused("the store is full")
            if not isinstance(self._entry(name), StoredResult):
                self.entries[name] = encode_entry(result)

    async def find(self, names: Sequence[bytes]) -> list[Pending | StoredResult | None]:
        self.finds += 1
        self._check()
        return [self._entry(name) for name in names]

    async def close(self) -> None:
        """Nothing to close."""

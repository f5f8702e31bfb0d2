"""The fake of the result store keeps to the contract of the real one (`tests/adapters/test_result_store_live.py`)."""

from pipeline.ports import ResultStore
from tests.contracts.result_store import MemoryResultStore, ResultStoreContract


class TestMemoryResultStore(ResultStoreContract):
    """The one that the gateway's tests use."""

    async def make_store(self) -> ResultStore:
        return MemoryResultStore()

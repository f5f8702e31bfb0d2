"""The caches there are, each against the contract."""

from pipeline.core.answer import StoredAnswer
from pipeline.core.response_cache import ResponseCache
from pipeline.ports import AnswerCache
from tests.contracts.response_cache import ResponseCacheContract


class TestResponseCache(ResponseCacheContract):
    """The worker's own memory."""

    def make_cache(self, bytes_max: int = 1 << 20) -> AnswerCache:
        return ResponseCache[StoredAnswer](bytes_max)

    def bytes_held(self, cache: AnswerCache) -> int | None:
        assert isinstance(cache, ResponseCache)
        return cache.bytes_used

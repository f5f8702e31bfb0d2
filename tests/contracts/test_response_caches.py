"""The caches there are, each against the contract."""

from pipeline.core.answer import StoredAnswer
from pipeline.core.eviction import S3FifoCache
from pipeline.ports import AnswerCache
from tests.contracts.response_cache import ResponseCacheContract


class TestS3FifoCache(ResponseCacheContract):
    """The worker's own memory."""

    def make_cache(self, bytes_max: int = 1 << 20) -> AnswerCache:
        return S3FifoCache[StoredAnswer](bytes_max)

    def bytes_held(self, cache: AnswerCache) -> int | None:
        assert isinstance(cache, S3FifoCache)
        return cache.bytes_used

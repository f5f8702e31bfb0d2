"""The engine as a worker runs it: its cache, the shared one where there is one, and the fleet."""

from collections.abc import Sequence
from functools import partial
from random import Random

from prometheus_client import CollectorRegistry

from pipeline.adapters.redis import RedisSharedCache
from pipeline.adapters.system import SystemClock
from pipeline.adapters.triton import TritonServer, instance_names
from pipeline.adapters.triton_shared_memory import SharedSlots
from pipeline.config import Settings
from pipeline.core.answer import StoredAnswer
from pipeline.core.catalog import ModelCatalog
from pipeline.core.fleet_queue import QueueBounds
from pipeline.core.response_cache import ResponseCache
from pipeline.core.routing import Router
from pipeline.dispatcher import Dispatcher
from pipeline.engine import InferenceEngine
from pipeline.metrics import EngineMetrics, SharedCacheMetrics
from pipeline.ports import InferenceServer, SharedCache, Tracer


def shared_cache_of(settings: Settings, registry: CollectorRegistry) -> RedisSharedCache | None:
    """The shared cache, or None where no Redis is configured.

    Raises:
        SettingsError: its address is wrong.
    """
    if not settings.redis.url:
        return None
    metrics = SharedCacheMetrics(registry)
    prefix = settings.kafka.topic_prefix
    return RedisSharedCache(settings.redis, settings.cache, prefix, SystemClock(), Random(), metrics)


def fleet_of(settings: Settings) -> list[TritonServer]:
    """The Tritons that are configured, each with its share of the memory that a worker and its servers may share."""
    urls = settings.triton.urls or ()
    share = settings.triton.shared_memory_bytes // max(len(urls), 1)
    shared = partial(SharedSlots, bytes_max=share) if share else None
    names = instance_names(urls)
    return [TritonServer(name, url, settings.triton.tls, shared) for name, url in zip(names, urls, strict=True)]


def engine_of(
    settings: Settings,
    catalog: ModelCatalog,
    servers: Sequence[InferenceServer],
    metrics: EngineMetrics,
    shared: SharedCache | None,
    tracer: Tracer | None = None,
) -> tuple[InferenceEngine, ResponseCache[StoredAnswer]]:
    """An engine on these servers, and its own cache."""
    clock = SystemClock()
    dispatcher = Dispatcher(
        servers,
        Router([server.name for server in servers], Random()),
        clock,
        attempt_timeout_s=settings.worker.inference_timeout_ms / 1e3,
        batches_in_flight=settings.worker.batches_in_flight,
        bounds=QueueBounds(settings.triton.queue_max, settings.triton.queue_max_bytes),
        metrics=metrics,
        tracer=tracer,
    )
    cache = ResponseCache[StoredAnswer](settings.cache.max_bytes)
    engine = InferenceEngine(
        catalog,
        cache,
        dispatcher,
        clock,
        shared=shared,
        ttl_s=settings.cache.ttl_seconds,
        unavailable_timeout_s=settings.worker.unavailable_timeout_ms / 1e3,
        metrics=metrics,
    )
    return engine, cache

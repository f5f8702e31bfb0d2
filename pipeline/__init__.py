"""An inference acceleration engine between Kafka and Triton.

One request's way, and where it is written down:

    inference.requests ── worker/transport.py   a chunk of one partition's records, through Faust
                          schemas/request.py    bytes -> request
                          engine.py             perform_inference_with_cache_check
                            core/cache_key.py     the key of everything that can change the answer
                            core/response_cache.py  the worker's own cache, bounded in bytes
                            flights.py            equal requests in flight run once
                            adapters/redis.py     the cache that workers share
                            core/batching.py      misses that may leave together
                            core/routing.py       which Triton instance
                            adapters/triton.py    the call
                          core/answer.py        answer -> result record and event lines
                          worker/publisher.py   results, then events, then the offset
    inference.results  ── client/               `Client`, `HttpClient`, `SyncClient`: infer, submit, map
    inference.events   ── sink/                 rows in ClickHouse

The listing is the import order: schemas <- core <- ports <- engine | adapters <- worker, sink, watcher, client,
stack, bench <- cli.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.client import Client, HttpClient, SyncClient

__all__ = ["Client", "HttpClient", "SyncClient"]


def __getattr__(name: str) -> object:
    """`from pipeline import Client`, loaded when asked for: `pipeline --help` needs no Kafka library."""
    if name in __all__:
        from pipeline import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""An inference acceleration engine between Kafka and Triton.

One request's way, and where it is written down:

    inference.requests ── worker/transport.py   a chunk of one partition's records, through Faust
                          schemas/request.py    bytes -> request
                          engine.py             perform_inference_with_cache_check
                            core/cache_key.py     the key of everything that can change the answer
                            core/eviction.py      the cache, bounded in bytes
                            core/coalescing.py    equal requests in flight run once
                            core/batching.py      misses that may leave together
                            core/routing.py       which Triton instance
                            adapters/triton.py    the call
                          core/answer.py        answer -> result record and event lines
                          worker/publisher.py   results, then events, then the offset
    inference.results  ── client/               `Client.infer`, `Client.submit`
    inference.events   ── sink/                 rows in ClickHouse

The listing is the import order: schemas <- core <- ports <- engine | adapters <- worker, sink, watcher, client,
stack, bench <- cli.
"""

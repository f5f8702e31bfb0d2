"""`gateway.hit_p50` and `gateway.hit_p99`: a hit over HTTP beside a bare FastAPI route that waits for an echo.

Both ways are HTTP -> Kafka -> another process -> Kafka -> HTTP, in turn, at the same open-loop rate. Ours is the Open
Inference Protocol's route with a result store, checks, ids, a reservation, and a worker that answers from its cache.
"""

from contextlib import AsyncExitStack
from functools import partial

import orjson

from pipeline.bench.effort import Effort
from pipeline.bench.figure import Bar, Figure, paired
from pipeline.bench.http_load import HttpLoop
from pipeline.bench.latency_phases import in_turn, skipped
from pipeline.bench.rig import Rig, valkey_on
from pipeline.bench.workload import MODEL, images
from pipeline.stack.ports import PortBook

_P99_BAR = Bar("ratio_at_most", 2.5)
_PORTS = (("gateway", 8080), ("bare-gateway", 8180))


async def measure(rig: Rig, effort: Effort) -> list[Figure]:
    """Both figures, from the same phases."""
    ours, plain = await rig.topics("gateway"), await rig.topics("bare")
    source, target = plain.topic("requests"), plain.topic("results")
    book = PortBook(rig.folder / "ports.json")
    ports = [book.take(name, preferred) for name, preferred in _PORTS]
    async with AsyncExitStack() as closing:
        redis = await closing.enter_async_context(valkey_on(rig.settings, rig.folder))
        variables = {
            "PIPELINE_REDIS__URL": redis.url or "",
            "PIPELINE_WORKER__GROUP": f"{ours.kafka.topic_prefix}worker",
            "PIPELINE_GATEWAY__PORT": str(ports[0]),
        }
        for name, settings, arguments in (
            ("gateway-worker", ours, ("pipeline", "worker")),
            ("gateway", ours, ("pipeline", "gateway")),
            ("gateway-echo", plain, ("pipeline.bench.echo_loop", source, target)),
            ("bare-gateway", plain, ("pipeline.bench.bare_gateway", str(ports[1]), source, target)),
        ):
            await closing.enter_async_context(rig.process(settings, name, *arguments, variables=variables))
        loops = {
            "gateway": HttpLoop(f"http://127.0.0.1:{ports[0]}/v2/models/{MODEL}/infer"),
            "bare route": HttpLoop(f"http://127.0.0.1:{ports[1]}/infer"),
        }
        for loop in loops.values():
            await closing.enter_async_context(loop)
        return await _phases(rig, effort, loops)


async def _phases(rig: Rig, effort: Effort, loops: dict[str, HttpLoop]) -> list[Figure]:
    distinct = [_body(image.ravel().tolist()) for image in images(effort.gateway_distinct)]
    count = int(effort.latency_seconds * effort.gateway_rate)
    skip = skipped(count, effort.gateway_rate)
    bodies = [distinct[number % len(distinct)] for number in range(count)]
    for loop in loops.values():
        await loop.first_answer(distinct[0])
        await loop.run(distinct, effort.gateway_rate, 0)  # from now on there are only hits
    ways = {name: partial(loop.run, bodies, effort.gateway_rate, skip) for name, loop in loops.items()}
    p50, p99 = await in_turn(ways, effort.latency_pairs, lambda line: rig.tell(f"gateway.hit: {line}"))
    what = f"of {effort.gateway_rate}/s open loop, {effort.latency_seconds:g} s each phase, from due to the last byte"
    bare = "one FastAPI route that produces to Kafka and waits for a bare echo"
    return [
        paired("gateway.hit_p50", "ms", p50["gateway"], p50["bare route"], None, how=f"p50 {what}", yardstick_how=bare),
        paired(
            "gateway.hit_p99", "ms", p99["gateway"], p99["bare route"], _P99_BAR, how=f"p99 {what}", yardstick_how=bare
        ),
    ]


def _body(pixels: list[float]) -> bytes:
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, len(pixels)], "data": pixels}
    return orjson.dumps({"inputs": [tensor]})

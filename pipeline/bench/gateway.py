"""`gateway.hit_p50` and `gateway.hit_p99`: a hit over HTTP beside a bare FastAPI route that waits for an echo.

Both ways are HTTP -> Kafka -> another process -> Kafka -> HTTP, in turn, at the same open-loop rate. Ours is the Open
Inference Protocol's route with a result store, checks, ids, a reservation, and a worker that answers from its cache.
"""

from contextlib import AsyncExitStack
from functools import partial

from pipeline.bench.effort import Effort
from pipeline.bench.figure import Bar, Figure, paired
from pipeline.bench.gateway_rig import protocol_body, running_gateway
from pipeline.bench.http_load import HttpLoop
from pipeline.bench.http_pool import HttpPool
from pipeline.bench.latency_phases import in_turn, skipped
from pipeline.bench.rig import Rig
from pipeline.bench.workload import images
from pipeline.stack.ports import PortBook

_P99_BAR = Bar("ratio_at_most", 2.5)


async def measure(rig: Rig, effort: Effort) -> list[Figure]:
    """Both figures, from the same phases."""
    ours, plain = await rig.topics("gateway"), await rig.topics("bare")
    source, target = plain.topic("requests"), plain.topic("results")
    port = PortBook(rig.folder / "ports.json").take("bare-gateway", 8180)
    async with AsyncExitStack() as closing:
        url = await closing.enter_async_context(running_gateway(rig, ours, "hit"))
        for name, arguments in (
            ("gateway-echo", ("pipeline.bench.echo_loop", source, target)),
            ("bare-gateway", ("pipeline.bench.bare_gateway", str(port), source, target)),
        ):
            await closing.enter_async_context(rig.process(plain, name, *arguments))
        pools = {"gateway": HttpPool(url), "bare route": HttpPool(f"http://127.0.0.1:{port}/infer")}
        loops = {name: HttpLoop(closing.enter_context(pool)) for name, pool in pools.items()}
        return await _phases(rig, effort, loops)


async def _phases(rig: Rig, effort: Effort, loops: dict[str, HttpLoop]) -> list[Figure]:
    distinct = [protocol_body(image) for image in images(effort.gateway_distinct)]
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

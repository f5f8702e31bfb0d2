"""A callback of a request whose answer stands in the log already."""

import asyncio

from tests.simulation.virtual_time import simulated
from tests.worker.test_delivered_again import deliver
from tests.worker.test_intake import bench, body


@simulated
async def test_repeated_result_has_its_callback_again() -> None:
    """A worker that died before it published the callback is followed by one that does: same bytes, same headers."""
    made = await bench()
    asked = body(5, id="r-1", callback={"url": "https://example.org/a"})
    made.take(asked, timestamp=1_795_384_800_000)
    await asyncio.sleep(1)
    (first,) = made.log.of("inference.webhooks")
    await deliver(made, [(asked, ())])
    first_again, again = made.log.of("inference.webhooks")
    assert first_again is first
    assert (again.key, again.value, again.partition) == (first.key, first.value, first.partition)
    assert dict(again.headers) == dict(first.headers)
    assert made.intake.repeated == 1

"""Waiting for a result while somebody is at the other end of the line."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from pipeline.core.stored_result import Pending, StoredResult
from pipeline.gateway.routes.deps import GatewayDeps


async def result_within(
    deps: GatewayDeps, request: Request, tenant: str | None, request_id: str, wait_s: float
) -> StoredResult | Pending | None:
    """`deps.inferences.wait`, ended early where the gateway stops: then what is known now is the answer.

    The request's body must have been read, or never be: what the client still sends is dropped.

    Raises:
        ClientDisconnect: the client has gone.
        ResultGone: the result's bytes are gone.
        ResultStoreError: nothing that could know of the request answers.
    """
    if wait_s <= 0 or deps.limits.stopping.is_set():
        return await deps.inferences.wait(tenant, request_id, 0)
    waiting = asyncio.ensure_future(deps.inferences.wait(tenant, request_id, wait_s))
    gone = asyncio.ensure_future(_gone(request))
    stopping = asyncio.ensure_future(deps.limits.stopping.wait())
    try:
        await asyncio.wait((waiting, gone, stopping), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        if gone.done():
            raise ClientDisconnect
    finally:
        for task in (waiting, gone, stopping):
            task.cancel()
        await asyncio.gather(waiting, gone, stopping, return_exceptions=True)
    return await deps.inferences.wait(tenant, request_id, 0)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

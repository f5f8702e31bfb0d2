"""What every router of the gateway is made with."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request

from pipeline.config import Settings

if TYPE_CHECKING:
    from pipeline.gateway.delivery.inferences import Inferences
    from pipeline.gateway.http.bodies import ReadBody
    from pipeline.gateway.http.identity import Identity
    from pipeline.gateway.http.limits import Limits


@dataclass(frozen=True, slots=True)
class GatewayDeps:
    """What every router of the gateway is made with.

    A router need not count its requests nor word its errors: the app around it admits each request before it is
    routed, takes back what it held when its last byte has left, and renders `problem.Problem` and `WireError`, as
    `{"error": …}` below /v2 and as problem details everywhere else; likewise what `inferences` raises.

    Attributes:
        inferences: requests in, results out. Waiting for a result with somebody at the other end of the line is
            `await long_polls.result_within(deps, request, tenant, request_id, wait_s)`: it ends early where the client
            goes or the gateway stops.
        settings: of this process.
        limits: `limits.wait(request)` before anything is waited for, ahead of the submit where the answer is all there
            is to give: raises Problem (429) where too many wait. `limits.hold(request, size)` before an answer of
            `size` bytes is sent: raises Problem (429). Both last until the request is over; `limits.let_go(request)`
            once Kafka has the body and no name refers to it any more, before its answer is waited for.
        read_body: `await read_body(request)` -> Body(value, headers), inflated and within all limits, ready for a
            Submission; `any_type=True` takes every Content-Type for what Inference-Header-Content-Length says (JSON
            where there is none). Raises Problem (400, 408, 413, 415, 429).
        identity: `identity(request)` -> Identity(tenant, key_id, source_ip). Raises Problem (401).
        admit: `await admit(request)`, the same of a request that hands in work: it counts against its tenant's rate.
            Raises Problem (401, 429).
    """

    inferences: "Inferences"
    settings: Settings
    limits: "Limits"
    read_body: "ReadBody"
    identity: "Callable[[Request], Identity]"
    admit: "Callable[[Request], Awaitable[Identity]]"

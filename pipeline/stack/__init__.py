"""The servers of a one-machine pipeline, and the supervisor that keeps them running.

Reading order: `plan` (what to start) -> `ports`, `state` (what is remembered in
the data folder) -> `process` (one child) -> `kafka`, `valkey`, `clickhouse`,
`triton` (how each server is started and when it is ready) -> `supervisor`
(all of them together). `clickhouse_http` is a server of ours: ClickHouse's HTTP
interface in front of the embedded engine. `doctor` says what a machine lacks.
"""

from pipeline.errors import StackError
from pipeline.stack.plan import Endpoints, PartPhase, PartState, StackPlan, TritonEndpoint
from pipeline.stack.state import StackState, read_running
from pipeline.stack.supervisor import Stack

__all__ = [
    "Endpoints",
    "PartPhase",
    "PartState",
    "Stack",
    "StackError",
    "StackPlan",
    "StackState",
    "TritonEndpoint",
    "read_running",
]

"""What to start, where it then listens, and what the supervisor tells its caller."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pipeline.errors import StackError

MIB = 1024 * 1024


class PartFailedError(StackError):
    """A part did not become ready.

    Attributes:
        part: its name.
        cause: what its output or its exit says.
        log_path: the file with the rest.
    """

    def __init__(self, part: str, cause: str, log_path: Path | None = None) -> None:
        self.part = part
        self.cause = cause
        self.log_path = log_path
        super().__init__(f"{part} cannot start: {cause}" + (f" (log: {log_path})" if log_path else ""))


class AlreadyRunningError(StackError):
    """Another supervisor owns the data folder."""

    def __init__(self, data_dir: Path, pid: int) -> None:
        self.data_dir = data_dir
        self.pid = pid
        super().__init__(f"a stack is already running in {data_dir}: its supervisor is process {pid}")


@dataclass(frozen=True, slots=True)
class StackPlan:
    """Which servers are local, and the few figures they share."""

    data_dir: Path
    kafka: bool = True
    valkey: bool = True
    clickhouse: bool = True
    triton_count: int = 2
    # The largest request or result record. The events topic's limit follows: 3x + 1 MiB.
    record_bytes_max: int = 8 * MIB
    # The model folders Triton serves: all of them are loaded at each of its starts. A folder whose
    # python model lacks its model.py hangs the load for ever: validate before.
    serving_dir: Path | None = None
    # Folders of Python-based backends (such as onnxruntime/model.py), copied beside Triton's own.
    backends_dir: Path | None = None
    # A first start of all on 2 loaded cores took under 10 s, plus the download of Kafka's
    # jars (about 45 MB, its own limit below).
    ready_timeout_s: float = 60.0
    download_timeout_s: float = 300.0
    stop_timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class TritonEndpoint:
    """One Triton instance; addresses are host:port."""

    name: str
    grpc: str
    http: str
    metrics: str


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the local servers listen. None, or empty, for what is not local."""

    kafka: str | None = None
    redis: str | None = None
    clickhouse: str | None = None
    triton: tuple[TritonEndpoint, ...] = ()
    # What the caller's own processes serve, by name (`gateway` -> its URL).
    other: dict[str, str] = field(default_factory=dict)


class PartPhase(StrEnum):
    """Where a part is in its life."""

    STARTING = "starting"
    READY = "ready"
    EXITED = "exited"
    RESTARTING = "restarting"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PartState:
    """One change of state of one part, as given to `on_change`."""

    name: str
    phase: PartPhase
    log_path: Path
    pid: int | None = None
    code: int | None = None  # exit status; -N for death by signal N; with EXITED
    why: str = ""  # one line: cause of an exit or a failure, or what READY came with
    pause_s: float = 0.0  # until the next start; with RESTARTING
    elapsed_s: float = 0.0  # from start to ready; with READY

"""Which request this task works on, so that a line that is logged on the way says whose it is."""

from contextvars import ContextVar


class RequestNames:
    """How a request is named in the log, as far as it is known by now.

    Attributes:
        request_id: None before its body was read, unless its key or address has it.
        tenant: of the credential.
        model_name: as the request has it.
        trace_id: of W3C trace context, where the request came with one.
    """

    __slots__ = ("model_name", "request_id", "tenant", "trace_id")

    def __init__(self) -> None:
        self.request_id: str | None = None
        self.tenant: str | None = None
        self.model_name: str | None = None
        self.trace_id: str | None = None


_current: ContextVar[RequestNames | None] = ContextVar("current_request", default=None)


def enter(names: RequestNames | None) -> None:
    """From now on this task works on this request, to its end: also while its failure is logged by the server."""
    _current.set(names)


def name_current(request_id: str, model_name: str) -> None:
    """From here on it is known which request the lines of this task are about."""
    if (names := _current.get()) is not None:
        names.request_id, names.model_name = request_id, model_name


def current_request() -> RequestNames | None:
    """The request that this task works on."""
    return _current.get()

"""What a client of the pipeline may meet besides an answer that failed (`pipeline.errors.InferenceFailed`).

PipelineError
 ├─ InferenceFailed          the answer failed or expired, or the request is not valid; `code` says why
 ├─ PipelineUnavailable      nothing could be asked, or the connection was lost
 │   ├─ KafkaUnavailable     … over Kafka
 │   └─ GatewayUnavailable   … over HTTP
 ├─ ResultNotReceived        no answer within the caller's limit; it may still come
 ├─ ResultGone               there was an answer, and its bytes are no longer kept
 ├─ IdReused                 the id is another request's
 ├─ GatewayRefused           the gateway refused for a reason that is no code of the wire: no or a wrong API key
 └─ ClientForked             a client made before a fork was used after it
"""

from pipeline.errors import PipelineError


class PipelineUnavailable(PipelineError):  # noqa: N818 - a state, not a mistake
    """The pipeline cannot be reached; what was sent may still be taken in."""


class KafkaUnavailable(PipelineUnavailable):
    """Kafka does not answer, or the connection was lost; what was sent may still be taken in."""


class GatewayUnavailable(PipelineUnavailable):
    """The gateway does not answer, or says that it cannot serve now; what was sent may still be taken in."""


class GatewayRefused(PipelineError):  # noqa: N818 - a state, not a mistake
    """The gateway refused a request; sending it again changes nothing.

    Args:
        status: of the HTTP answer.
        code: the problem's `code`; "" where it has none.
        message: the problem's sentence.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"HTTP {status}{f' {code}' if code else ''}: {message}")
        self.status = status
        self.code = code
        self.message = message


class IdReused(PipelineError):  # noqa: N818 - a state, not a mistake
    """An id that is another request's already.

    Args:
        request_id: the id.
    """

    def __init__(self, request_id: str) -> None:
        super().__init__(f"the id {request_id} belongs to a request with another content: use each id once")
        self.request_id = request_id


class ResultGone(PipelineError):  # noqa: N818 - a state, not a mistake
    """An answer whose bytes are no longer kept: they were cut, redacted, or have expired.

    Args:
        request_id: whose answer it was.
    """

    def __init__(self, request_id: str) -> None:
        super().__init__(f"request {request_id} was answered, and the answer is no longer kept")
        self.request_id = request_id


class ResultNotReceived(PipelineError):  # noqa: N818 - a state, not a mistake
    """No answer within the caller's limit: it may still come, under the same id, on the results topic.

    Args:
        request_id: whose answer it is.
        timeout_s: how long it was waited for.
    """

    def __init__(self, request_id: str, timeout_s: float) -> None:
        super().__init__(
            f"no answer to request {request_id} within {timeout_s:g} s: it may still come (`pipeline results --id "
            f"{request_id} --from-beginning`); `pipeline status` shows whether workers and servers run"
        )
        self.request_id = request_id
        self.timeout_s = timeout_s


class ClientForked(PipelineError):  # noqa: N818 - a state, not a mistake
    """A client is used in another process than the one that connected it.

    Args:
        pid: the process it belongs to.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(
            f"this client belongs to process {pid}: a thread does not survive a fork; make one client each"
        )
        self.pid = pid

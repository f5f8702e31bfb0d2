"""What a client of the pipeline may meet besides an answer that failed (`pipeline.errors.InferenceFailed`)."""

from pipeline.errors import PipelineError


class KafkaUnavailable(PipelineError):  # noqa: N818 - a state, not a mistake
    """Kafka does not answer, or the connection was lost; what was sent may still be taken in."""


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

"""An answer that was published before, from its record's bytes: its events and copies are written from these."""

from pipeline.core.answer import Answer, StoredAnswer, stored_answer
from pipeline.core.exchange import Exchange
from pipeline.core.result_record import Headers, ResultRecord
from schemas.errors import WireError
from schemas.result import InferenceResult, decode_result, json_object_length


def recall(exchange: Exchange, value: bytes, headers: Headers) -> tuple[Answer, ResultRecord, str]:
    """What the engine said, the record it became, and the worker that wrote it.

    Args:
        exchange: the request, which gets the times and durations of that answer.
        value: the result record's bytes.
        headers: its headers.

    Raises:
        ValueError: the record is no result, although its headers say so.
    """
    result = decode_result(value, headers)
    outputs = _outputs(result)
    parameters = result.parameters
    completed_at = result.completed_at.timestamp()
    exchange.recall(
        requested_at=result.requested_at.timestamp() if result.requested_at else exchange.requested_at,
        completed_at=completed_at,
        queue_s=(parameters.queue_ms or 0.0) / 1e3,
        total_s=(parameters.total_ms or 0.0) / 1e3,
    )
    inference_s = (parameters.inference_ms or 0.0) / 1e3
    answer = Answer(
        result.status,
        result.model_version,
        outputs,
        result.error,
        parameters.cache_status,
        bytes.fromhex(parameters.cache_key) if parameters.cache_key else None,
        dispatched_at=completed_at - inference_s if _was_dispatched(result) else None,
        inference_s=inference_s,
        instance=parameters.instance or "",
    )
    if parameters.cache_age_ms is not None:
        answer.age_s = parameters.cache_age_ms / 1e3
    return answer, ResultRecord(value, headers, json_object_length(value)), parameters.worker or ""


def _outputs(result: InferenceResult) -> StoredAnswer | None:
    if result.outputs is None:
        return None
    try:
        tensors = [output.to_tensor() for output in result.outputs]
    except WireError as error:
        raise ValueError(f"result {result.id!r}: {error}") from error
    return stored_answer(tensors, stored_at=0.0, instance=result.parameters.instance or "")


def _was_dispatched(result: InferenceResult) -> bool:
    """`inference_ms` says so, but for those who only got what somebody else's inference had brought."""
    return result.parameters.inference_ms is not None and result.parameters.cache_status not in ("hit", "coalesced")

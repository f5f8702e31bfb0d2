"""Following the results topic for a person or a program."""

import sys
from dataclasses import dataclass

from pipeline.adapters.kafka import client_options
from pipeline.cli.console import cell_text, show
from pipeline.cli.context import effective_settings
from pipeline.cli.submission import result_line
from pipeline.client.pending import ResultRecord
from pipeline.client.results import KafkaResults, header
from schemas.result import InferenceResult, decode_result
from schemas.tensor import element_count, to_numpy

# Wide enough for a UUID, a time of day, "sentences 12", "succeeded", "coalesced".
_LINE = "{time:<15} {id:<36} {model:<16} {status:<9} {cache:<9} {ms:>8}  {outputs}"
_OUTPUT_CHARS_MAX = 60
_ELEMENTS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which results are shown; None for any, and for no end."""

    model_name: str | None = None
    status: str | None = None
    request_id: str | None = None
    limit: int | None = None

    def may_want(self, record: ResultRecord) -> bool:
        """Whether a record has to be parsed at all, by its headers; one without them has to."""
        for text, name in ((self.request_id, "ce_id"), (self.model_name, "ce_subject")):
            found = header(record.headers, name)
            if text is not None and found is not None and found != text.encode():
                return False
        return True

    def wants(self, answer: InferenceResult) -> bool:
        """Whether an answer is shown."""
        return (
            self.model_name in (None, answer.model_name)
            and self.status in (None, answer.status)
            and self.request_id in (None, answer.id)
        )


async def follow(wanted: Wanted, *, from_beginning: bool, as_json: bool) -> None:
    """Shows results until the limit, or until it is cancelled.

    Raises:
        PipelineError: Kafka does not answer, or the topic does not exist.
    """
    settings = effective_settings()
    topic = KafkaResults(client_options(settings.kafka), settings.topic("results"), from_beginning=from_beginning)
    shown = 0
    try:
        await topic.start()
        if not as_json:
            show(_LINE.format(time="completed", id="id", model="model", status="status", cache="cache", ms="ms",
                              outputs="outputs"), style="bold")  # fmt: skip
        while True:
            for record in await topic.read():
                if not wanted.may_want(record):
                    continue
                answer = _decoded(record)
                if answer is None or not wanted.wants(answer):
                    continue
                _print(record, answer, as_json=as_json)
                shown += 1
                if shown == wanted.limit:
                    return
    finally:
        await topic.stop()


def _decoded(record: ResultRecord) -> InferenceResult | None:
    try:
        return decode_result(record.value, record.headers)
    except ValueError as error:
        print(f"partition {record.partition}, offset {record.offset}: no result record: {error}", file=sys.stderr)
        return None


def _print(record: ResultRecord, answer: InferenceResult, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.buffer.write(result_line(record, answer) + b"\n")
        sys.stdout.buffer.flush()
        return
    parameters = answer.parameters
    show(
        _LINE.format(
            time=f"{answer.completed_at:%H:%M:%S.%f}",
            id=answer.id,
            model=f"{answer.model_name} {answer.model_version or ''}",
            status=answer.status,
            cache=parameters.cache_status or "",
            ms="" if parameters.total_ms is None else f"{parameters.total_ms:.1f}",
            outputs=_outputs_text(answer),
        )
    )


def _outputs_text(answer: InferenceResult) -> str:
    if answer.error is not None:
        return f"{answer.error.code}: {answer.error.message}"
    parts = []
    for output in answer.outputs or ():
        tensor = output.to_tensor()
        few = element_count(tensor.shape) <= _ELEMENTS_SHOWN
        values = to_numpy(tensor).reshape(-1).tolist() if few else ()
        value = " ".join(map(cell_text, values)) if few else f"{tensor.datatype}{list(tensor.shape)}"
        parts.append(f"{output.name}={value:.{_OUTPUT_CHARS_MAX}}")
    return ", ".join(parts)

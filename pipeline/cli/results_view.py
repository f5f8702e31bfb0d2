"""Following the results topic for a person or a program."""

import sys
from contextlib import aclosing

from pipeline.adapters.kafka import client_options
from pipeline.cli.console import cell_text, show
from pipeline.cli.context import effective_settings
from pipeline.cli.submission import result_line
from pipeline.client.pending import ResultRecord
from pipeline.client.result_stream import Wanted, first_results
from pipeline.client.results import KafkaResults
from schemas.result import InferenceResult
from schemas.tensor import element_count, to_numpy

__all__ = ["Wanted", "follow"]

# Wide enough for a UUID, a time of day, "sentences 12", "succeeded", "coalesced".
_LINE = "{time:<15} {id:<36} {model:<16} {status:<9} {cache:<9} {ms:>8}  {outputs}"
_OUTPUT_CHARS_MAX = 60
_ELEMENTS_SHOWN = 3


async def follow(wanted: Wanted, *, limit: int | None, from_beginning: bool, as_json: bool) -> None:
    """Shows results until the limit, or until it is cancelled; of each id the first, for that is its answer.

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
        async with aclosing(first_results(topic, wanted)) as found:
            async for record, answer in found:
                _print(record, answer, as_json=as_json)
                shown += 1
                if shown == limit:
                    return
    finally:
        await topic.stop()


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

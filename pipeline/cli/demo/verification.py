"""Whether the pipeline told the truth: answers against onnxruntime in this process, rows against what was sent."""

import asyncio
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.cli.demo.sending import Answered
from pipeline.cli.local_pipeline import serving_dir
from pipeline.client.arrays import outputs_as_numpy
from pipeline.config import Settings
from pipeline.errors import EventStoreError, PipelineError

Outputs = dict[str, npt.NDArray[Any]]
Reference = Callable[[npt.NDArray[Any]], Outputs]

# Other builds of onnxruntime differ by 1e-6, a wrong answer by 1e-2.
_TOLERANCE = 1e-5
# The sink inserts once a second; a busy machine takes some more.
_ROWS_TIMEOUT_S = 60.0
_ROWS_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class LogFigures:
    """What ClickHouse says of the demo's requests: the questions, and the answers to them."""

    tenant: str
    sent: int
    rows: int
    ids: int
    by_status_sql: str
    column_names: tuple[str, ...] = ()
    by_status: Sequence[Sequence[Any]] = ()
    problem: str = ""

    @property
    def complete(self) -> bool:
        """One row for each request, none missing and none twice."""
        return not self.problem and self.rows == self.ids == self.sent


def verify(settings: Settings, answered: Sequence[Answered]) -> list[str]:
    """Compares every answer with the same model file run in this process; returns what differs. Blocks.

    Integers and texts must be equal, floats within 1e-5.
    """
    problems: list[str] = []
    references: dict[tuple[str, str], Reference] = {}
    for one in answered:
        if one.answer is None:
            problems.append(f"{one.request.model_name}: {one.problem}")
            continue
        name, version = one.answer.model_name, one.answer.model_version or ""
        try:
            if (name, version) not in references:
                references[name, version] = open_reference(settings, name, version)
            expected = references[name, version](next(iter(one.request.inputs.values())))
        except (OSError, PipelineError) as error:
            return [*problems, f"{name} version {version} cannot be run here: {error}"]
        problems += [f"request {one.answer.id} ({name}): {what}" for what in differences(expected, one)]
    return problems


def differences(expected: Outputs, answered: Answered) -> list[str]:
    """How an answer differs from what it should be; empty when it does not."""
    assert answered.answer is not None, "only answered ones are compared"
    found = outputs_as_numpy(answered.answer)
    if found.keys() != expected.keys():
        return [f"outputs are {sorted(found)}, expected {sorted(expected)}"]
    return [
        f"output {name} differs: {found[name]!r:.80}" for name in expected if not _equal(found[name], expected[name])
    ]


def _equal(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if found.dtype.kind != "f":
        return bool(np.array_equal(found, expected))
    return bool(np.allclose(found, expected, rtol=0, atol=_TOLERANCE))


def open_reference(settings: Settings, model_name: str, version: str) -> Reference:
    """The model in this process, without any server.

    Raises:
        PipelineError: no way to run this model here is known.
        OSError: its files are not there.
    """
    if model_name == "digits":
        return _onnx_reference(settings.model_repository / "digits" / version / "model.onnx")
    if model_name == "sentences":
        return _embedder_reference(serving_dir(settings) / "sentences" / version)
    raise PipelineError(f"the demo knows no way to run {model_name} in process")


def _onnx_reference(path: Path) -> Reference:
    import onnxruntime

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    (given,) = [one.name for one in session.get_inputs()]

    def run(array: npt.NDArray[Any]) -> Outputs:
        return dict(zip(names, session.run(names, {given: array}), strict=True))

    return run


def _embedder_reference(version_folder: Path) -> Reference:
    """The model's own tokenization, and the graph that was built for the servers."""
    source = version_folder / "text_embedder.py"
    spec = importlib.util.spec_from_file_location("served_text_embedder", source)
    if spec is None or spec.loader is None or not source.is_file():
        raise FileNotFoundError(f"{source} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    embedder = module.TextEmbedder(version_folder)

    def run(array: npt.NDArray[Any]) -> Outputs:
        return {"embedding": embedder.embed([text.decode() for text in array.reshape(-1)])}

    return run


async def check_rows(settings: Settings, tenant: str, *, sent: int) -> LogFigures:
    """Waits until every request has its row, within a limit, and asks ClickHouse what the demo asked itself."""
    counting = f"SELECT count(), uniqExact(request_id) FROM requests WHERE tenant = '{tenant}'"  # noqa: S608 - our own hex
    grouping = (
        "SELECT model_name, cache_status, count() AS requests,\n"
        "       round(quantileExact(0.5)(total_us) / 1000, 2) AS p50_ms\n"
        f"FROM requests WHERE tenant = '{tenant}'\n"
        "GROUP BY model_name, cache_status ORDER BY model_name, cache_status"
    )
    deadline = time.monotonic() + _ROWS_TIMEOUT_S
    rows = ids = 0
    async with ClickHouseEventStore(settings.clickhouse) as store:
        try:
            while rows < sent and time.monotonic() < deadline:
                ((rows, ids),) = (await store.query(counting)).rows
                if rows < sent:
                    await asyncio.sleep(_ROWS_POLL_S)
            answer = await store.query(grouping)
        except EventStoreError as error:
            return LogFigures(tenant, sent, rows, ids, grouping, problem=str(error))
    return LogFigures(tenant, sent, rows, ids, grouping, answer.column_names, answer.rows)

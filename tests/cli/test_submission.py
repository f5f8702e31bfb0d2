"""`submit` from the file to the summary, on topics that answer as the test says."""

import io
import json
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pytest

from pipeline.cli.request_files import (
    BadLine,
    InputFileError,
    Target,
    as_they_come,
    from_json_lines,
    from_rows,
    from_text_lines,
)
from pipeline.cli.submission import Submission, Tally, result_line
from pipeline.client import KafkaUnavailable
from pipeline.client.pending import ResultRecord
from pipeline.client.records import RequestRecord, build_record
from schemas.request import decode_request
from schemas.result import decode_result
from tests.client.scripted_topics import ScriptedClient, failed_record, result_record

LINE = b'{"model_name": "digits", "inputs": [{"name": "image", "datatype": "FP32", "shape": [1], "data": [1]}]}\n'
TARGET = Target("sentences", "text", "3", enable_cache=False)


def ids() -> Any:
    """Ids in order: r-0, r-1, …."""
    numbers = count()
    return lambda number, content: f"r-{next(numbers)}"


def now() -> float:
    """A clock that stands still."""
    return 0.0


class Told:
    """Keeps what a submission tells."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.answers: list[dict[str, Any]] = []

    def problem(self, line: str) -> None:
        self.problems.append(line)

    def answer(self, line: bytes) -> None:
        self.answers.append(json.loads(line))

    def progress(self, tally: Tally) -> None:
        """Nothing is shown."""


async def each(records: Iterable[RequestRecord | BadLine]) -> AsyncIterator[RequestRecord | BadLine]:
    """Records that are there already."""
    for record in records:
        yield record


def test_bad_lines_keep_their_numbers() -> None:
    """Every line is a record or a reason with its number; empty lines count but are skipped."""
    lines = io.BytesIO(LINE + b"\nnot json\n" + LINE + b'{"model_name": 1}\n')
    found = list(from_json_lines(lines, ids(), now, enable_cache=None))
    assert [record.id if isinstance(record, RequestRecord) else record.number for record in found] == [
        "r-0",
        3,
        "r-2",
        5,
    ]


def test_text_lines_become_bytes_inputs() -> None:
    """A line's bytes without its end are one BYTES element of shape [1, 1]."""
    (record,) = from_text_lines(io.BytesIO("naïve café\r\n\n".encode()), TARGET, ids(), now)
    assert isinstance(record, RequestRecord)
    request = decode_request(record.value, record.headers)
    assert (request.model_name, request.model_version, request.enable_cache) == ("sentences", "3", False)
    (tensor,) = request.inputs
    assert (tensor.datatype, tensor.shape, tensor.value()) == ("BYTES", [1, 1], ["naïve café"])


def test_rows_become_batches_of_one() -> None:
    """Each row of the first axis is one request with the row's shape behind a batch axis of 1."""
    file = io.BytesIO()
    np.save(file, np.arange(12, dtype=np.float32).reshape(3, 4))
    file.seek(0)
    records = list(from_rows(file, "x.npy", Target("digits", "image"), ids(), now))
    tensors = [
        decode_request(record.value, record.headers).inputs[0].to_tensor()
        for record in records
        if isinstance(record, RequestRecord)
    ]
    assert [tensor.shape for tensor in tensors] == [(1, 4)] * 3
    assert b"".join(tensor.raw for tensor in tensors) == np.arange(12, dtype=np.float32).tobytes()


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY"])
def test_file_that_is_no_array_is_one_error(content: bytes) -> None:
    """A broken .npy file is told by its name."""
    with pytest.raises(InputFileError, match=r"x\.npy"):
        list(from_rows(io.BytesIO(content), "x.npy", Target("digits", "image"), ids(), now))


async def test_records_come_from_a_thread_in_order() -> None:
    """A blocking source is read in a thread: everything arrives once, in order."""
    records = from_json_lines(io.BytesIO(LINE * 300), ids(), now, enable_cache=None)
    assert [record.id async for record in as_they_come(records) if isinstance(record, RequestRecord)] == [
        f"r-{number}" for number in range(300)
    ]


async def test_reading_error_is_raised_to_the_sender() -> None:
    """What goes wrong while reading ends the submission, not only the thread."""
    with pytest.raises(InputFileError):
        [one async for one in as_they_come(from_rows(io.BytesIO(b"x"), "x.npy", TARGET, ids(), now))]


async def submit(
    client: ScriptedClient, told: Told, records: Iterable[RequestRecord | BadLine], **options: Any
) -> Tally:
    """Sends the records through a scripted client."""
    arguments = {"wait": True, "in_flight_max": 4, "timeout_s": 5.0} | options
    async with client:
        return await Submission(client, told, **arguments).run(each(records))


def digits(number: int) -> list[RequestRecord]:
    """Different requests with the ids r-0, r-1, …."""
    return [build_record(f"r-{one}", "digits", {"image": [one]}, now=0.0) for one in range(number)]


async def test_answers_come_in_the_order_of_requests() -> None:
    """Answers are told in the order of the file, and all are counted."""
    told = Told()
    client = ScriptedClient(lambda record, partition: [result_record(record.id, partition)])
    tally = await submit(client, told, digits(20))
    assert [answer["id"] for answer in told.answers] == [f"r-{number}" for number in range(20)]
    assert (tally.sent, tally.failed, tally.cache["miss"]) == (20, 0, 20)


async def test_troubles_do_not_stop_the_others() -> None:
    """A bad line, a failed answer and a missing one are told and counted; the rest is answered."""
    told = Told()

    def script(record: RequestRecord, partition: int) -> list[ResultRecord]:
        if record.id == "r-1":
            return [failed_record(record.id, partition, "MODEL_ERROR")]
        return [] if record.id == "r-2" else [result_record(record.id, partition)]

    records: list[RequestRecord | BadLine] = [*digits(4), BadLine(9, "why not")]
    tally = await submit(ScriptedClient(script), told, records, timeout_s=0.05)
    assert (tally.sent, tally.bad_lines, tally.lost, tally.failed) == (4, 1, 1, 3)
    assert tally.codes == {"MODEL_ERROR": 1}
    assert sorted(problem.split(":")[0].split()[0] for problem in told.problems) == ["line", "no", "request"]


async def test_requests_in_flight_are_bounded() -> None:
    """Never more requests are unanswered than allowed."""
    open_now = most = 0

    def script(record: RequestRecord, partition: int) -> list[ResultRecord]:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        return [result_record(record.id, partition)]

    class Counting(Told):
        def answer(self, line: bytes) -> None:
            nonlocal open_now
            open_now -= 1
            super().answer(line)

    told = Counting()
    await submit(ScriptedClient(script), told, digits(50), in_flight_max=3)
    assert len(told.answers) == 50
    assert most <= 3


async def test_typed_lines_are_answered_one_by_one() -> None:
    """A line is answered while the next one is still being typed."""
    answered = threading.Event()

    class Noticing(Told):
        def answer(self, line: bytes) -> None:
            super().answer(line)
            answered.set()

    def typed() -> Iterator[RequestRecord | BadLine]:
        for record in digits(3):
            yield record
            assert answered.wait(5), "the answer to the line before did not come"
            answered.clear()

    told = Noticing()
    client = ScriptedClient(lambda record, partition: [result_record(record.id, partition)])
    async with client:
        submission = Submission(client, told, wait=True, in_flight_max=4, timeout_s=5.0)
        tally = await submission.run(as_they_come(typed()))
    assert (tally.sent, len(told.answers)) == (3, 3)


async def test_receipts_without_waiting() -> None:
    """Without waiting each request gives its receipt: id, partition, offset."""
    told = Told()
    tally = await submit(ScriptedClient(lambda record, partition: []), told, digits(3), wait=False)
    assert [(answer["id"], answer["offset"]) for answer in told.answers] == [("r-0", 0), ("r-1", 1), ("r-2", 2)]
    assert (tally.sent, tally.failed) == (3, 0)


async def test_lost_connection_stops_the_submission() -> None:
    """When the connection is lost the submission ends with that error instead of waiting for each request."""
    client = ScriptedClient(lambda record, partition: [])
    client.answers.put_nowait(KafkaUnavailable("the broker is gone"))
    with pytest.raises(KafkaUnavailable, match="the broker is gone"):
        await submit(client, Told(), digits(50))


def test_binary_results_become_json_lines() -> None:
    """A result with raw outputs is written with numbers, or in base64 where JSON has none."""
    request = partial(result_record, "r", 0)
    members = [
        {"name": "a", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 8}},
        {"name": "b", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
    ]
    record = request(outputs=members)
    tail = np.array([7], "<i8").tobytes() + np.array([np.nan], "<f4").tobytes()
    headers = [*record.headers, ("Inference-Header-Content-Length", b"%d" % len(record.value))]
    record = record._replace(value=record.value + tail, headers=headers)
    line = json.loads(result_line(record, decode_result(record.value, record.headers)))
    assert [output.get("data") or output["base64"] for output in line["outputs"]] == [[7], "AADAfw=="]


def test_json_results_are_passed_on_byte_for_byte() -> None:
    """A JSON result's line is the record itself."""
    record = result_record("r", 0)
    assert result_line(record, decode_result(record.value, record.headers)) is record.value

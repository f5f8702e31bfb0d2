"""`SyncClient`: the same answers without `await`, from any thread, beside any loop, and never after a fork."""

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipeline.client import (
    ClientForked,
    HttpClient,
    InferenceFailed,
    KafkaUnavailable,
    PipelineUnavailable,
    Progress,
    SyncClient,
)
from pipeline.client.records import RequestRecord
from schemas.result import InferenceResult
from tests.client.held_client import HeldClient, Outcome, success
from tests.client.scripted_topics import ScriptedClient, failed_record, result_record

IMAGE = {"image": [1]}


def client_threads() -> list[threading.Thread]:
    """The threads of clients that are not closed."""
    return [thread for thread in threading.enumerate() if thread.name == "inference client"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """Whatever a test does, its client's thread ends."""
    assert client_threads() == []
    yield
    gc.collect()
    assert client_threads() == []


def test_answers_come_without_await() -> None:
    """`infer`, `submit` and the receipt's waits return what the awaited ones do."""
    with SyncClient(HeldClient(success)) as client:
        assert client.infer("m", IMAGE, id="a").id == "a"
        submitted = client.submit("m", IMAGE, id="b")
        assert submitted.receipt == {"id": "b", "partition": 0, "offset": 1}
        assert (submitted.result().id, submitted.answer().id) == ("b", "b")
        assert submitted.record().value == result_record("b", 0).value


def test_errors_are_raised_as_they_are() -> None:
    """A failed answer is the same typed error."""
    held = HeldClient(lambda record: failed_record(record.id, 0, "MODEL_ERROR"))
    with SyncClient(held) as client, pytest.raises(InferenceFailed, match="MODEL_ERROR"):
        client.infer("m", IMAGE)


async def test_works_where_a_loop_runs_already() -> None:
    """In a notebook the caller's thread has a running loop: the client has its own."""
    with SyncClient(HeldClient(success)) as client:
        assert client.infer("m", IMAGE).status == "succeeded"


def test_connects_when_first_used_and_closes_once() -> None:
    """Without a `with` block the first call connects; after `close` there is an error, until it is connected again."""
    held = HeldClient(success)
    client = SyncClient(held)
    assert not held.is_connected
    client.infer("m", IMAGE)
    client.close()
    client.close()
    assert not held.is_connected
    with pytest.raises(PipelineUnavailable, match="closed"):
        client.infer("m", IMAGE)
    with client:
        assert client.infer("m", IMAGE).status == "succeeded"


def test_forgotten_client_is_closed() -> None:
    """A client that nobody holds any more is disconnected and its thread ends."""
    held = HeldClient(success)
    SyncClient(held).infer("m", IMAGE)
    gc.collect()
    assert (held.is_connected, client_threads()) == (False, [])


def test_failed_connection_leaves_nothing() -> None:
    """Where connecting fails the error is the client's own, and the next call tries anew."""

    class Refusing(HeldClient):
        async def connect(self) -> None:
            if not self.asked:
                self.asked.append("connect")
                raise KafkaUnavailable("nobody there")
            await super().connect()

    client = SyncClient(Refusing(success))
    with pytest.raises(KafkaUnavailable, match="nobody there"):
        client.infer("m", IMAGE)
    assert client_threads() == []
    with client:
        assert client.infer("m", IMAGE).status == "succeeded"


def test_many_threads_share_one_client() -> None:
    """Threads that start at once connect it once, and each has its own answer."""
    connected = []

    class Counting(HeldClient):
        async def connect(self) -> None:
            connected.append(threading.current_thread().name)
            await asyncio.sleep(0)

    client = SyncClient(Counting(success))
    names = [f"r-{number}" for number in range(200)]
    with ThreadPoolExecutor(16) as pool, client:
        found = list(pool.map(lambda name: client.infer("m", IMAGE, id=name).id, names))
    assert found == names
    assert connected == ["inference client"]


def test_close_ends_waits_in_other_threads() -> None:
    """Whoever waits in another thread is told that the client was closed."""
    held = HeldClient()
    client = SyncClient(held)
    client.connect()
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(client.infer, "m", IMAGE)
        mapping = pool.submit(list, client.map("m", [IMAGE]))
        client.run(lambda: held.until_asked(2))
        client.close()
        for one in (waiting, mapping):
            with pytest.raises(PipelineUnavailable, match="closed"):
                one.result()


def test_call_from_its_own_loop_is_refused() -> None:
    """A call that would wait for itself for ever is an error."""

    def script(record: RequestRecord) -> Outcome:
        client.infer("m", IMAGE)
        raise AssertionError("not reached")

    with SyncClient(HeldClient(script)) as client, pytest.raises(RuntimeError, match="its own event loop"):
        client.infer("m", IMAGE)


def test_forked_child_is_told() -> None:
    """In a forked child every call says so at once, closing is harmless, and the parent's client goes on."""
    with SyncClient(HeldClient(success)) as client:
        client.infer("m", IMAGE)
        pid = os.fork()
        if pid == 0:
            # A child that waits for a thread it does not have ends all the same.
            signal.alarm(10)
            code = 1
            try:
                client.infer("m", IMAGE)
            except ClientForked as error:
                client.close()
                code = 0 if error.pid == os.getppid() else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert client.infer("m", IMAGE).status == "succeeded"


def test_map_reads_inputs_in_the_callers_thread() -> None:
    """The source runs in the consumer's thread, never more than `concurrency` ahead of it."""
    threads, ahead = set(), []
    consumed = 0

    def source() -> Iterator[dict[str, Any]]:
        for number in range(30):
            threads.add(threading.current_thread())
            ahead.append(number + 1 - consumed)
            yield {"image": [number]}

    with SyncClient(HeldClient(success)) as client:
        for _ in client.map("m", source(), concurrency=4):
            consumed += 1
    assert consumed == 30
    assert threads == {threading.current_thread()}
    assert max(ahead) <= 4


def test_map_keeps_the_order_or_yields_as_they_come() -> None:
    """Ordered answers wait for the ones before; unordered ones do not."""
    held = HeldClient()
    with SyncClient(held) as client:
        for ordered, expected in ((True, ["0", "1"]), (False, ["1", "0"])):
            held.asked.clear()

            async def answer_backwards() -> None:
                await held.until_asked(2)
                held.answer("1")
                # The second answer is let go only when the first one has reached whoever waits for it.
                for _ in range(10):
                    await asyncio.sleep(0)
                held.answer("0")

            with ThreadPoolExecutor(1) as pool:
                answering = pool.submit(client.run, answer_backwards)
                found = [one.id for one in client.map("m", [IMAGE, IMAGE], ordered=ordered, id_of=str)]
                answering.result()
            assert found == expected


def test_map_tells_errors_and_progress() -> None:
    """Errors are raised or values, as asked; progress is told in the consumer's thread."""

    def script(record: RequestRecord) -> Outcome:
        return failed_record("1", 0, "MODEL_ERROR") if record.id == "1" else result_record(record.id, 0)

    told: list[tuple[Progress, threading.Thread]] = []

    def keep(progress: Progress) -> None:
        told.append((progress, threading.current_thread()))

    with SyncClient(HeldClient(script)) as client:
        outcomes = list(client.map("m", [IMAGE] * 3, return_exceptions=True, on_progress=keep, id_of=str))
        with pytest.raises(InferenceFailed):
            list(client.map("m", [IMAGE] * 3, id_of=str))
    assert [type(one) for one in outcomes] == [InferenceResult, InferenceFailed, InferenceResult]
    assert told[-1] == (Progress(taken=3, done=3, failed=1, hits=0, total=3), threading.current_thread())


def test_leaving_a_map_stops_what_is_out() -> None:
    """A consumer that leaves the loop cancels what it does not wait for any more."""
    held = HeldClient()
    with SyncClient(held) as client:

        def source() -> Iterator[dict[str, Any]]:
            yield IMAGE
            yield IMAGE
            client.run(lambda: held.until_asked(2))
            client.run(answer_first)
            yield IMAGE

        async def answer_first() -> None:
            held.answer("0")

        answers = client.map("m", source(), concurrency=3, id_of=str)
        assert next(answers).id == "0"
        client.run(lambda: held.until_asked(3))  # one that was cancelled before it began has asked nothing
        answers.close()
        client.run(lambda: held.until_cancelled(2))
        assert sorted(held.cancelled) == ["1", "2"]


def test_failing_source_is_told_after_its_answers() -> None:
    """What the source gave before it failed is answered first."""

    def source() -> Iterator[dict[str, Any]]:
        yield IMAGE
        raise OSError("the disk is gone")

    with SyncClient(HeldClient(success)) as client:
        answers = client.map("m", source(), id_of=str)
        assert next(answers).id == "0"
        with pytest.raises(OSError, match="disk"):
            next(answers)


def test_results_need_kafka() -> None:
    """The stream of results is refused over HTTP with the way to have it."""
    with pytest.raises(TypeError, match="needs Kafka"):
        SyncClient(HttpClient("http://127.0.0.1:8080")).results()


def test_results_are_followed_and_left() -> None:
    """The stream is an ordinary iterator; closing it ends its reading."""
    scripted = ScriptedClient(lambda record, partition: [])
    with SyncClient(scripted) as client:

        async def publish() -> None:
            for name in ("a", "b"):
                scripted.stream.put_nowait(result_record(name, 0))

        client.run(publish)
        found = client.results(model_name="digits")
        assert [next(found).id, next(found).id] == ["a", "b"]
        found.close()

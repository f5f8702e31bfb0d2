"""The whole engine from a seed: whatever comes together, these invariants hold.

`SIMULATION_SEEDS=1000:2000` tries others than the few of every run.
"""

import os
from collections import Counter
from collections.abc import Sequence

import pytest

from pipeline.core.answer import Answer
from schemas.errors import ErrorCode
from tests.simulation.engine_world import History, World, right_answer
from tests.simulation.fleet import right_outputs
from tests.simulation.virtual_time import MONOTONIC_START, UNIX_START, run_simulated

_FIRST, _END = map(int, os.environ.get("SIMULATION_SEEDS", "0:40").split(":"))
# A timer of the loop may fire this much after its time.
_TICK_S = 1e-6


def repeat(history: History) -> str:
    """How to see it again."""
    seed = history.seed
    return f"Repeat: SIMULATION_SEEDS={seed}:{seed + 1} pytest tests/simulation/test_engine_simulation.py"


def check_one_answer_per_request(history: History) -> None:
    """I1: every request has exactly one answer."""
    for sent in history.sent:
        assert len(sent.answers) == 1, (
            f"I1 broken: request {sent.number} has {len(sent.answers)} answers, expected 1. {repeat(history)}"
        )


def check_no_wrong_answer(history: History) -> None:
    """I2: an answer is what the version it names computes of this very request."""
    for sent in history.sent:
        answer = sent.answers[0]
        if answer.outputs is None:
            assert answer.failure is not None, f"I2 broken: request {sent.number} has nothing. {repeat(history)}"
            continue
        assert answer.model_version is not None
        right = right_answer(history.contents[answer.model_version], sent.asked)
        assert answer.outputs.tensors == right, (
            f"I2 broken: request {sent.number} ({answer.cache_status}) has another's answer, "
            f"expected that of version {answer.model_version}. {repeat(history)}"
        )
        assert sent.asked.model_version in (None, answer.model_version), (
            f"I2 broken: request {sent.number} asked for version {sent.asked.model_version}, "
            f"{answer.model_version} answered. {repeat(history)}"
        )


def check_one_inference_per_key_in_flight(history: History) -> None:
    """I3: a key that is being computed is not computed again, but for no-cache."""
    for begun in history.flights:
        refreshing = begun.flight.members[0].cache_status == "refresh"
        assert not begun.overlaps or refreshing, (
            f"I3 broken: at {begun.at:.3f} a second flight of key {begun.flight.key!r:.20} began. {repeat(history)}"
        )


def check_nothing_stored_under_another_version(history: History) -> None:
    """I4: what is stored under a key is what that key's version computes of that key's inputs."""
    flights = {begun.flight.key: begun.flight for begun in history.flights if begun.flight.key is not None}
    for stored in history.stored:
        flight = flights[stored.key]
        parameters = flight.parameters
        outputs = right_outputs(flight.version.fingerprint, flight.tensors, parameters)
        by_name = {tensor.name: tensor for tensor in outputs}
        assert stored.answer.tensors == tuple(by_name[name] for name, _ in flight.outputs), (
            f"I4 broken: a wrong answer is stored under a key of version {flight.version.version}. {repeat(history)}"
        )


def check_no_older_default(history: History) -> None:
    """I5: a request appended after a promotion took effect is not answered by an earlier default (G6)."""
    for sent in history.sent:
        answer = sent.answers[0]
        if sent.asked.model_version is not None or answer.outputs is None:
            continue
        effective = [int(each.number) for each in history.promotions if each.effective_at <= sent.appended_at]
        assert int(answer.model_version or 0) >= max(effective, default=1), (
            f"I5 broken: request {sent.number}, appended after version {max(effective)} took effect, "
            f"was answered by version {answer.model_version}. {repeat(history)}"
        )


def check_answers_keep_their_deadlines(history: History) -> None:
    """I6: no answer later than its deadline; none for want of an instance before its time."""
    for sent in history.sent:
        waited = sent.answered_at - sent.sent_at
        if sent.asked.timeout_ms is not None:
            late = UNIX_START + sent.sent_at - MONOTONIC_START - sent.appended_at
            left = sent.asked.timeout_ms / 1e3 - late
            assert waited <= max(left, 0.0) + _TICK_S, (
                f"I6 broken: request {sent.number} had {left:.3f} s left and took {waited:.3f} s. {repeat(history)}"
            )
        elif (failure := sent.answers[0].failure) and failure.code is ErrorCode.INFERENCE_UNAVAILABLE:
            assert waited >= 30.0, (
                f"I6 broken: request {sent.number} was given up after {waited:.3f} s. {repeat(history)}"
            )


INVARIANTS = (
    check_one_answer_per_request,
    check_no_wrong_answer,
    check_one_inference_per_key_in_flight,
    check_nothing_stored_under_another_version,
    check_no_older_default,
    check_answers_keep_their_deadlines,
)


async def _history(seed: int) -> History:
    return await World(seed).run()


@pytest.mark.parametrize("seed", range(_FIRST, _END))
def test_engine_keeps_its_invariants(seed: int) -> None:
    """Random requests, promotions, outages and failures break none of the invariants."""
    history = run_simulated(_history(seed))
    for check in INVARIANTS:
        check(history)


def test_simulation_follows_from_its_seed() -> None:
    """The same seed gives the same history, to the last answer."""
    first, second = (run_simulated(_history(7)) for _ in range(2))
    assert [_told(sent.answers) for sent in first.sent] == [_told(sent.answers) for sent in second.sent]
    assert first.calls == second.calls


def _told(answers: Sequence[Answer]) -> list[str]:
    return [str(answer) for answer in answers]


def test_simulation_meets_all_that_it_should() -> None:
    """Taken together, the seeds of every run reach every kind of answer; else they would prove little."""
    met: set[str] = set()
    shared: Counter[str] = Counter()
    for seed in range(24):
        history = run_simulated(_history(seed))
        shared += history.shared
        for sent in history.sent:
            answer = sent.answers[0]
            met.add(f"{answer.cache_status} {answer.failure.code if answer.failure else answer.status}")
    wanted = {
        "hit succeeded", "miss succeeded", "coalesced succeeded", "refresh succeeded", "bypass succeeded",
        "miss MODEL_ERROR", "coalesced MODEL_ERROR", "miss EXPIRED", "None EXPIRED", "None CACHE_MISS",
        "miss CACHE_MISS", "None VERSION_NOT_FOUND", "miss INFERENCE_UNAVAILABLE",
    }  # fmt: skip
    assert wanted - met == set()
    assert {"hit", "miss", "late", "stored", "not_first"} - shared.keys() == set()

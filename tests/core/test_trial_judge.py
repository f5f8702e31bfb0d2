"""When a version on trial is told to do worse than the default, and when that may be chance."""

import random

import pytest

from pipeline.core.trial_judge import Arm, verdict


def arm(answered: int, failed: int = 0, ms: float | None = None) -> Arm:
    made = Arm()
    for number in range(answered):
        made.count(succeeded=number >= failed, inference_ms=ms)
    return made


@pytest.mark.parametrize(
    ("trial", "default", "ends"),
    [
        (arm(4, 4), arm(1000), False),
        (arm(5, 5), arm(1000), True),
        (arm(20, 4), arm(1000), False),
        (arm(100, 8), arm(100, 1), False),
        (arm(1000, 30), arm(1000, 30), False),
        (arm(1000, 70), arm(1000, 20), True),
        (arm(1000, 20), arm(1000, 70), False),
        (arm(30, 20), arm(0), True),
        (arm(30, 10), arm(0), False),
        (arm(1000, 1000), arm(1000, 1000), False),
    ],
)
def test_errors_end_a_trial_where_chance_is_no_explanation(trial: Arm, default: Arm, ends: bool) -> None:
    """More errors than the default's, beyond four and a half standard deviations, and five at least."""
    reason = verdict(trial, default)
    assert (reason is not None) is ends
    assert reason is None or f"{trial.failed} of {trial.answered} answers failed" in reason


@pytest.mark.parametrize(
    ("trial", "default", "ends"),
    [
        (arm(99, ms=500.0), arm(1000, ms=5.0), False),
        (arm(100, ms=500.0), arm(1000, ms=5.0), True),
        (arm(1000, ms=11.0), arm(1000, ms=5.0), False),
        (arm(1000, ms=16.0), arm(1000, ms=5.0), True),
        (arm(1000, ms=190.0), arm(1000, ms=100.0), False),
        (arm(1000, ms=5.0), arm(1000, ms=500.0), False),
    ],
)
def test_time_ends_a_trial_that_takes_twice_as_long(trial: Arm, default: Arm, ends: bool) -> None:
    """Twice the default's 95th percentile and 10 ms more; hits say nothing of it."""
    assert (verdict(trial, default) is not None) is ends
    assert verdict(arm(1000), arm(1000)) is None


def test_equal_versions_are_hardly_ever_told_apart() -> None:
    """Of 60 trials with 3 % of errors on both sides, looked at every 20 answers, at most one ends by chance."""
    rng = random.Random(7)

    def ends() -> bool:
        trial, default = Arm(), Arm()
        for number in range(2000):
            side = trial if rng.random() < 0.1 else default
            side.count(succeeded=rng.random() > 0.03, inference_ms=rng.lognormvariate(2.0, 0.5))
            if number % 20 == 0 and trial.answered and verdict(trial, default) is not None:
                return True
        return False

    assert sum(ends() for _ in range(60)) <= 1


def test_what_a_trial_remembers_is_bounded() -> None:
    """A trial may last for months: 2,000 times are kept, the newest."""
    made = arm(5000, ms=100.0)
    for _ in range(2000):
        made.count(succeeded=True, inference_ms=1.0)
    assert (len(made.times_ms), made.p95_ms()) == (2000, 1.0)

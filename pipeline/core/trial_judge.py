"""Whether a version on trial does worse than the default: by its errors, and by the time it takes. Pure.

Both versions answer requests of the same kind at the same time, so nothing needs to be known of what is usual. A trial
ends only where chance is no explanation: four and a half standard deviations for errors, and twice the default's 95th
percentile for the time, which batches and a busy machine do not explain for one version alone.

Source: the score test for two proportions (Wilson, 1927).
"""

import math
from collections import deque
from dataclasses import dataclass, field

# It is asked again with every few answers: with 3 one trial in 20 of equal versions ended within 4,000 answers, with
# 4.5 and at least five errors one in 150 or none (simulated, 0.1 to 5 % of errors, shares of 5 and 20 %).
_Z = 4.5
_FAILED_MIN = 5
_TIMES_MIN = 100
_TIMES_KEPT = 2000
_SLOWER_MAX = 2.0
# Below this a difference is nobody's concern, and a batch more or less explains it.
_SLOWER_MIN_MS = 10.0


@dataclass(slots=True)
class Arm:
    """What one version answered since the trial began; times are of answers that were computed, in milliseconds."""

    answered: int = 0
    failed: int = 0
    times_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMES_KEPT))

    def count(self, *, succeeded: bool, inference_ms: float | None) -> None:
        """One answer; `inference_ms` is None where nothing was computed for it."""
        self.answered += 1
        self.failed += not succeeded
        if succeeded and inference_ms is not None:
            self.times_ms.append(inference_ms)

    def p95_ms(self) -> float:
        """The 95th percentile of the last times."""
        return sorted(self.times_ms)[math.ceil(0.95 * len(self.times_ms)) - 1]


def verdict(trial: Arm, default: Arm) -> str | None:
    """Why the trial should end, in words; None while nothing speaks against it."""
    if trial.failed >= _FAILED_MIN and _fails_more(trial, default):
        errors = f"{trial.failed} of {trial.answered} answers failed"
        return f"{errors}, of the default's {default.failed} of {default.answered}"
    if len(trial.times_ms) < _TIMES_MIN or len(default.times_ms) < _TIMES_MIN:
        return None
    ours, theirs = trial.p95_ms(), default.p95_ms()
    if ours > theirs * _SLOWER_MAX and ours - theirs > _SLOWER_MIN_MS:
        return f"its 95th percentile is {ours:.1f} ms, the default's {theirs:.1f} ms"
    return None


def _fails_more(trial: Arm, default: Arm) -> bool:
    """Whether the trial's share of errors is above the default's beyond chance; a default that is idle has none."""
    together = (trial.failed + default.failed) / (trial.answered + default.answered)
    if not default.answered:
        return trial.failed * 2 > trial.answered
    spread = math.sqrt(together * (1 - together) * (1 / trial.answered + 1 / default.answered))
    difference = trial.failed / trial.answered - default.failed / default.answered
    return spread > 0 and difference > _Z * spread

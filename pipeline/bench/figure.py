"""One measured figure beside its yardstick, and the bar that it has to meet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, NamedTuple

Direction = Literal["ratio_at_least", "ratio_at_most", "value_below"]


class Bar(NamedTuple):
    """What a figure has to meet: its ratio to the yardstick, or its own value."""

    direction: Direction
    limit: float

    def is_met(self, value: float, ratio: float | None) -> bool:
        """Whether a figure meets it; one without a ratio meets no bar on ratios."""
        if self.direction == "value_below":
            return value < self.limit
        if ratio is None:
            return False
        return ratio >= self.limit if self.direction == "ratio_at_least" else ratio <= self.limit


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure.

    Attributes:
        name: as the contract has it, `group.what`.
        value: in `unit`, the median or the best of the rounds, as `how` says.
        yardstick: the same work done the plain way in the same run, in the same unit.
        ratio: value to yardstick; of paired rounds the median of their ratios, so that noise that strikes a pair
            strikes both of it.
        how: what was measured, in one line; `yardstick_how` likewise.
        rounds: how many rounds there were.
        ratios: lowest and highest ratio of a round: how noisy it was.
        steps: where the time goes, in `unit`, by step.
        notes: other readings of the same run.
    """

    name: str
    value: float
    unit: str
    yardstick: float | None
    ratio: float | None
    bar: Bar | None
    how: str
    yardstick_how: str
    rounds: int
    ratios: tuple[float, float] | None = None
    steps: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the bar is met; without a bar there is nothing to miss."""
        return self.bar is None or self.bar.is_met(self.value, self.ratio)

    def as_json(self, machine: str) -> dict[str, Any]:
        """The figure for programs; members beyond the contract's seven say how it came about."""
        return {
            "name": self.name,
            "value": _rounded(self.value),
            "unit": self.unit,
            "yardstick": _rounded(self.yardstick),
            "ratio": _rounded(self.ratio),
            "bar": self.bar.limit if self.bar else None,
            "ok": self.ok,
            "bar_direction": self.bar.direction if self.bar else None,
            "how": self.how,
            "yardstick_how": self.yardstick_how,
            "rounds": self.rounds,
            "ratio_range": [_rounded(ratio) for ratio in self.ratios] if self.ratios else None,
            "steps": {name: _rounded(value) for name, value in self.steps.items()},
            "notes": {name: _rounded(value) for name, value in self.notes.items()},
            "machine": machine,
        }


def paired(
    name: str,
    unit: str,
    ours: Sequence[float],
    plain: Sequence[float],
    bar: Bar | None,
    *,
    how: str,
    yardstick_how: str,
    notes: Mapping[str, float] | None = None,
) -> Figure:
    """A figure of interleaved rounds, the one and the other in turn: medians, and the median of the pairs' ratios."""
    ratios = [one / other for one, other in zip(ours, plain, strict=True)]
    return Figure(
        name, median(ours), unit, median(plain), median(ratios), bar, how, yardstick_how, len(ours),
        (min(ratios), max(ratios)), notes=notes or {},
    )  # fmt: skip


def best(
    name: str,
    unit: str,
    ours: Sequence[float],
    plain: Sequence[float],
    bar: Bar | None,
    *,
    how: str,
    yardstick_how: str,
    steps: Mapping[str, float] | None = None,
) -> Figure:
    """A figure of CPU time alone: the best round of each, since whatever disturbs a round only makes it longer."""
    ratios = [one / other for one, other in zip(ours, plain, strict=True)]
    return Figure(
        name, min(ours), unit, min(plain), min(ours) / min(plain), bar, how, yardstick_how, len(ours),
        (min(ratios), max(ratios)), steps=steps or {},
    )  # fmt: skip


def _rounded(number: float | None) -> float | None:
    """Four digits are more than a shared machine can tell."""
    return None if number is None else float(f"{number:.4g}")

"""Which faults come, in which order, from a seed: every kind as often as any other, give or take one."""

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass

# Beyond the session timeout of 10 s: the group has moved on when the process comes back.
_PAUSE_S = (11.0, 14.0)
_OUTAGE_S = (4.0, 10.0)
_NONE_S = (0.0, 0.0)
_GAP_S = (0.5, 3.0)
# A quarter of the faults that may overlap come in pairs.
_PAIR_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class FaultKind:
    """A kind of fault.

    Attributes:
        hold_s: how long it lasts, the least and the most.
        overlaps: whether another may come at the same time.
        pauses_a_writer: after it, a result may stand twice: whoever was paused did not know that it was replaced.
    """

    name: str
    hold_s: tuple[float, float]
    overlaps: bool = True
    pauses_a_writer: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        FaultKind("kill worker", _NONE_S),
        FaultKind("pause worker", _PAUSE_S, pauses_a_writer=True),
        FaultKind("restart worker", _NONE_S),
        FaultKind("worker joins and leaves", _OUTAGE_S),
        FaultKind("kill sink", _NONE_S),
        FaultKind("pause sink", _PAUSE_S),
        FaultKind("kill triton", _NONE_S),
        FaultKind("pause triton", _PAUSE_S),
        FaultKind("kill valkey", _NONE_S),
        FaultKind("pause valkey", _PAUSE_S),
        FaultKind("kill clickhouse", _NONE_S),
        FaultKind("pause clickhouse", _PAUSE_S),
        FaultKind("clickhouse cannot write", _OUTAGE_S, overlaps=False),
        FaultKind("kill kafka", _NONE_S),
        FaultKind("pause kafka", _PAUSE_S, pauses_a_writer=True),
        FaultKind("restart stack", _NONE_S, overlaps=False),
        FaultKind("kill stack", _NONE_S, overlaps=False),
        FaultKind("refill", _NONE_S, overlaps=False),
    )
}


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault to come. `choice` picks the victim where there are several."""

    kind: FaultKind
    hold_s: float
    choice: int


@dataclass(frozen=True, slots=True)
class Round:
    """One fault, or two at a time, after a pause of `gap_s`."""

    gap_s: float
    faults: tuple[Planned, ...]


def plan_rounds(seed: int, kinds: Collection[str]) -> Iterator[Round]:
    """Rounds without end. Kinds come in shuffled decks, so each kind comes as often as every other.

    Raises:
        KeyError: an unknown kind.
    """
    source = random.Random(seed)
    deck: list[FaultKind] = []

    def draw() -> Planned:
        if not deck:
            deck.extend(KINDS[name] for name in kinds)
            source.shuffle(deck)
        kind = deck.pop()
        return Planned(kind, source.uniform(*kind.hold_s), source.randrange(1 << 16))

    while True:
        faults = [draw()]
        # Two of one target's faults would be one: only different targets overlap.
        if faults[0].kind.overlaps and deck and source.random() < _PAIR_SHARE:
            other = deck[-1]
            if other.overlaps and other.name.split()[-1] != faults[0].kind.name.split()[-1]:
                faults.append(draw())
        yield Round(source.uniform(*_GAP_S), tuple(faults))

"""Figures: how rounds become one number, and when a bar is met."""

import pytest

from pipeline.bench.figure import Bar, Figure, best, paired

CONTRACT_MEMBERS = {"name", "value", "unit", "yardstick", "ratio", "bar", "ok"}


def figure(ours: list[float], plain: list[float], bar: Bar | None) -> Figure:
    return paired("group.what", "requests/s", ours, plain, bar, how="ours", yardstick_how="plain")


def test_paired_ratio_is_the_median_of_pairs() -> None:
    """A pair that was disturbed as a whole does not move the ratio, though it moves both medians."""
    one = figure([100.0, 10.0, 90.0], [200.0, 20.0, 180.0], None)
    assert one.ratio == pytest.approx(0.5)
    assert one.ratios == (0.5, 0.5)
    assert (one.value, one.yardstick, one.rounds) == (90.0, 180.0, 3)


def test_best_takes_the_shortest_round_of_each() -> None:
    """CPU time is only ever lengthened by noise, so the shortest round is the figure."""
    one = best("group.what", "us", [12.0, 10.0], [5.0, 8.0], None, how="ours", yardstick_how="plain")
    assert (one.value, one.yardstick, one.ratio) == (10.0, 5.0, 2.0)


@pytest.mark.parametrize(
    ("bar", "is_met"),
    [
        (Bar("ratio_at_least", 0.5), True),
        (Bar("ratio_at_least", 0.51), False),
        (Bar("ratio_at_most", 0.5), True),
        (Bar("ratio_at_most", 0.49), False),
        (Bar("value_below", 100.1), True),
        (Bar("value_below", 100.0), False),
        (None, True),
    ],
)
def test_bar_compares_ratio_or_value(bar: Bar | None, is_met: bool) -> None:
    """A bar on the ratio includes its limit, one on the value does not; without a bar nothing is missed."""
    assert figure([100.0], [200.0], bar).ok is is_met


def test_bar_on_ratios_is_missed_without_one() -> None:
    """What could not be compared does not pass."""
    assert not Bar("ratio_at_least", 0.5).is_met(1.0, None)


def test_json_has_the_members_of_the_contract() -> None:
    """Programs find the seven members, numbers as numbers, and the machine beside them."""
    document = figure([123456.0], [200000.0], Bar("ratio_at_least", 0.5)).as_json("a machine")
    assert document.keys() >= CONTRACT_MEMBERS
    assert document["ok"] is True
    assert (document["value"], document["ratio"], document["bar"]) == (123500.0, 0.6173, 0.5)
    assert document["machine"] == "a machine"

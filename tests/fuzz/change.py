"""One change of a meaning that may change the answer, and the list of them."""

from collections.abc import Callable

from tests.fuzz.dice import Dice
from tests.fuzz.meaning import Layout, Meaning

# None where the change does not apply to this meaning.
Change = Callable[[Meaning, Layout, Dice], Meaning | None]
CHANGES: dict[str, Change] = {}


def change(function: Change) -> Change:
    """Adds a change under its function's name, as reports write it."""
    CHANGES[function.__name__.replace("_", " ")] = function
    return function

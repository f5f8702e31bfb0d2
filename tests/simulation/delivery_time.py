"""Virtual time for the delivery simulation: tasks are generators that wait for seconds or for a `Signal`.

An event loop costs ten times as much; thousands of seeds run in every test run. What a process does is dropped when it
ends and kept back while it is paused; what is on the network goes on.
"""

import heapq
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

Action = Callable[[], None]


class Ended(Exception):  # noqa: N818 - a fact, thrown through the steps of a process
    """The process that runs these steps is dead."""


@dataclass(eq=False)
class Signal:
    """Wakes whoever waits for it now; `done` stays."""

    done: bool = False
    waiting: list[Action] = field(default_factory=list)

    def set(self) -> None:
        self.done = True
        waiting, self.waiting = self.waiting, []
        for wake in waiting:
            wake()


Steps = Generator[float | Signal, None, None]


@dataclass(eq=False)
class Life:
    """Whose actions they are: dropped when it ended, kept back while it is paused."""

    alive: bool = True
    paused: bool = False
    kept_back: list[Action] = field(default_factory=list)


class Timeline:
    """The order of everything: one heap of what is due."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self._due: list[tuple[float, int, Action, Life | None]] = []
        self._number = 0

    def after(self, delay_s: float, action: Action, life: Life | None = None) -> None:
        """Does something later; without a life, whatever becomes of anybody."""
        self._number += 1
        heapq.heappush(self._due, (self.now + delay_s, self._number, action, life))

    def start(self, life: Life, steps: Steps) -> None:
        """Runs a task of a process."""

        def advance() -> None:
            if not life.alive:
                return
            if life.paused:
                life.kept_back.append(advance)
                return
            try:
                wait = next(steps)
            except (StopIteration, Ended):
                return
            if isinstance(wait, Signal):
                wait.waiting.append(wake)
            else:
                self.after(wait, advance, life)

        def wake() -> None:
            self.after(0.0, advance, life)

        self.after(0.0, advance, life)

    def resume(self, life: Life) -> None:
        """A paused process goes on where it was."""
        life.paused = False
        kept_back, life.kept_back = life.kept_back, []
        for action in kept_back:
            self.after(0.0, action, life)

    def run(self, until: Callable[[], bool], limit_s: float) -> bool:
        """Goes on until a condition holds; False where the limit came first."""
        end = self.now + limit_s
        due = self._due
        while not until():
            if not due or due[0][0] > end:
                self.now = end
                return False
            at, _, action, life = heapq.heappop(due)
            self.now = max(self.now, at)
            if life is None:
                action()
            elif life.paused:
                life.kept_back.append(action)
            elif life.alive:
                action()
        return True

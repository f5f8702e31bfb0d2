"""CPU time of short pieces of code, taken in turns, with the garbage collector set as the worker sets it."""

from collections.abc import Callable, Mapping
from time import thread_time

from pipeline.adapters.system import rare_garbage_collections


def cpu_microseconds(
    pieces: Mapping[str, Callable[[int], object]], *, rounds: int, calls: int
) -> dict[str, list[float]]:
    """CPU microseconds of one call of each piece, one number for each round.

    In a round the pieces run one after the other, `calls` times each. Only this thread's time counts, collections
    included: what other processes do shows in the caches alone.

    Args:
        pieces: by name; each is given the number of the call.
        rounds: how often all of them are measured, after one round that is not.
        calls: how often a piece is called in a round.
    """
    taken: dict[str, list[float]] = {name: [] for name in pieces}
    with rare_garbage_collections():
        for number in range(rounds + 1):
            for name, piece in pieces.items():
                began = thread_time()
                for call in range(calls):
                    piece(call)
                elapsed = thread_time() - began
                if number:
                    taken[name].append(elapsed / calls * 1e6)
    return taken

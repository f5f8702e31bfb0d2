"""Lanes and memberships for tests of what works on them."""

from pipeline.core.commit_note import CommitNote
from pipeline.core.lane import Lane, LaneStart
from pipeline.worker.membership import Membership

TOPIC = "inference.requests"
GROUP = "group"


def new_lane(partition: int = 0, generation: int = 7, note: CommitNote | None = None, requests_end: int = 0) -> Lane:
    """A partition that is ours; by default nothing was ever answered in it, and nothing waits."""
    begin = LaneStart(
        offset=0,
        note=note or CommitNote(results_from=0),
        requests_end=requests_end,
        results_from=0,
        results_end=0,
    )
    return Lane(TOPIC, partition, generation, GROUP, begin)


class SureMembership(Membership):
    """A group that never gives a lane away."""

    def __init__(self) -> None:
        super().__init__(10.0)

    def is_fresh(self, lane: Lane) -> bool:
        """Always."""
        return True

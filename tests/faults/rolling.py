"""Workers restarted one after the other under a steady load: what a request notices of it."""

import time
from pathlib import Path
from typing import Any

from tests.faults.account import Window
from tests.faults.campaign import RECOVERY_TIMEOUT_S, Outcome, Plan, Tell, finish, running, wait_flowing
from tests.faults.product import READY_TIMEOUT_S
from tests.faults.report import gaps_of, quantile
from tests.faults.waiting import wait_until

_KIND = "restart worker"


def run_rolling(data_dir: Path, plan: Plan, tell: Tell) -> tuple[Outcome, dict[str, Any]]:
    """Restarts every worker in turn, `plan.faults` times in all; each is ready before the next goes.

    Returns:
        The run, and what was seen: latencies from Kafka's acknowledgement to the reading of the result, in ms, and
        the longest times without an answer, in seconds, of all partitions together and of the worst one.

    Raises:
        NotInTimeError: a worker does not stop, or is not ready again.
    """
    with running(data_dir, plan) as run:
        outcome = Outcome(plan, run.account, began_at=time.time())
        wait_flowing(run, time.time(), RECOVERY_TIMEOUT_S)
        begin = time.time()
        services = run.rig.services
        for index in range(plan.faults):
            workers = services.all("worker")
            worker = workers[index % len(workers)]
            began_at = time.time()
            services.stop([worker.name])
            worker.wanted = True
            wait_until(worker.is_ready, READY_TIMEOUT_S, f"{worker.name} is ready again")
            ended_at = time.time()
            answers_s, rows_s = wait_flowing(run, ended_at, RECOVERY_TIMEOUT_S)
            outcome.windows.append(Window(_KIND, worker.name, began_at, ended_at, answers_s, rows_s))
            tell(f"{index + 1}: {worker.name} restarted in {ended_at - began_at:.1f} s")
        end = time.time()
        finish(run, outcome, tell)
    return outcome, _figures(outcome, begin, end)


def _figures(outcome: Outcome, begin: float, end: float) -> dict[str, Any]:
    asked = outcome.account.asked
    answers = [one for one in outcome.account.first_answers() if begin <= one.read_at <= end and one.place in asked]
    delays = [one.read_at - asked[one.place].acked_at for one in answers]
    of_partition = {
        number: max((after - before for before, after in gaps_of(own, 0)), default=0.0)
        for number in sorted({one.partition for one in answers})
        if (own := [one for one in answers if one.partition == number])
    }
    return {
        "restarts": len(outcome.windows),
        "requests": len(answers),
        "latency_ms": {
            name: round(quantile(delays, share) * 1e3, 1) for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        },
        "longest_silence_s": round(max((after - before for before, after in gaps_of(answers, 0)), default=0.0), 2),
        "longest_silence_of_a_partition_s": {number: round(gap, 2) for number, gap in of_partition.items()},
    }

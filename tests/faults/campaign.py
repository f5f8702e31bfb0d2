"""Load and faults together, then the end: everything drained, everything compared."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from confluent_kafka import KafkaException

from tests.faults.account import Account, Window
from tests.faults.images import Images
from tests.faults.inference_log import InferenceLog, QueryFailedError
from tests.faults.load import Load, RequestSource
from tests.faults.product import PROJECT, Servers, Services
from tests.faults.reader import Reader
from tests.faults.schedule import KINDS, Planned, Round, plan_rounds
from tests.faults.strikes import End, Rig, begin, can_forbid_writes, release_writes
from tests.faults.verdict import Finding, Verdict, judge
from tests.faults.waiting import NotInTimeError, wait_until

PREFIX = "inference."
_WORKER_GROUP = "inference-worker"
_SINK_GROUP = "inference-sink"
# The default of PIPELINE_KAFKA__PARTITIONS.
_PARTITIONS = 4
_READY_TIMEOUT_S = 60.0
# A dead worker's partitions wait for its session (10 s), a stack needs 10 s to start; restarts pause up to 30 s.
RECOVERY_TIMEOUT_S = 120.0
_DRAIN_TIMEOUT_S = 300.0
_TICK_S = 0.05

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is made of.

    Attributes:
        requests: at least so many are acknowledged.
        faults: at least so many come.
        minutes: the run ends then, complete or not.
        burst: requests of one refill.
        kinds: of faults, by name.
        static_workers, dynamic_workers: members of the group with and without an instance id.
    """

    seed: int
    requests: int
    faults: int
    rate: float
    minutes: float
    burst: int = 10_000
    kinds: tuple[str, ...] = tuple(KINDS)
    static_workers: int = 1
    dynamic_workers: int = 2


@dataclass(slots=True)
class Outcome:
    """A run: what it was, and what came of it. `memory_mib` by service: at the begin and at the end."""

    plan: Plan
    account: Account
    verdict: Verdict = field(default_factory=Verdict)
    windows: list[Window] = field(default_factory=list)
    skipped_kinds: list[str] = field(default_factory=list)
    exits: dict[str, dict[int, int]] = field(default_factory=dict)
    memory_mib: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    began_at: float = 0.0
    load_s: float = 0.0
    drain_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Running:
    """Everything that runs while requests are sent."""

    rig: Rig
    reader: Reader
    log: InferenceLog
    account: Account


@contextmanager
def running(data_dir: Path, plan: Plan) -> Iterator[Running]:
    """The product with its workers and sink, the load and the reader; all ended afterwards.

    Raises:
        NotInTimeError: something does not start.
    """
    logs_dir = data_dir / "oracle"
    logs_dir.mkdir(parents=True, exist_ok=True)
    account = Account(f"{PREFIX}requests")
    source = RequestSource(Images(PROJECT / "model_repository" / "digits", plan.seed), plan.seed)
    with ExitStack() as closing:
        servers = Servers(data_dir / "product", logs_dir)
        closing.callback(servers.close)
        closing.callback(release_writes, servers.data_dir)
        servers.start()
        addresses = servers.status()
        kafka = addresses["kafka"]["bootstrap_servers"]
        services = closing.enter_context(Services(_environment(servers.data_dir, addresses), logs_dir))
        for index in range(plan.static_workers):
            name = f"worker-static-{index}"
            services.add(name, "worker", PIPELINE_WORKER__INSTANCE_ID=name)
        for index in range(plan.dynamic_workers):
            services.add(f"worker-{index}", "worker")
        services.add("sink-0", "sink")
        wait_until(
            lambda: all(one.is_ready() for one in services.all()), _READY_TIMEOUT_S, "workers and sink are ready"
        )
        reader = Reader(kafka, account, f"{PREFIX}results", f"{PREFIX}dead-letter")
        load = Load(kafka, account, source, plan.rate)
        closing.callback(reader.stop)
        closing.callback(load.stop)
        reader.start()
        load.start()
        yield Running(
            Rig(servers, services, load, plan.burst), reader, InferenceLog(addresses["clickhouse"]["url"]), account
        )


def _environment(data_dir: Path, addresses: dict[str, object]) -> dict[str, str]:
    """What workers and sinks get: addresses, as an operator's unit file has them; a stack that is down keeps them."""

    def member(part: str, name: str) -> str:
        document = addresses[part]
        assert isinstance(document, dict), f"`status` has no {part}"
        return str(document[name])

    tritons = addresses["triton"]
    assert isinstance(tritons, list), "`status` has no triton"
    return {
        "PIPELINE_DATA_DIR": str(data_dir),
        "PIPELINE_MODEL_REPOSITORY": str(PROJECT / "model_repository"),
        "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": member("kafka", "bootstrap_servers"),
        "PIPELINE_REDIS__URL": member("redis", "url"),
        "PIPELINE_CLICKHOUSE__URL": member("clickhouse", "url"),
        "PIPELINE_TRITON__URLS": ",".join(str(one["grpc"]) for one in tritons),
    }


def run_faults(data_dir: Path, plan: Plan, tell: Tell) -> Outcome:
    """A whole run.

    Raises:
        NotInTimeError: the product does not start, or something of it does not stop.
    """
    with running(data_dir, plan) as run:
        outcome = Outcome(plan, run.account, began_at=time.time())
        if not can_forbid_writes(run.rig.servers.data_dir):
            outcome.skipped_kinds = ["clickhouse cannot write"]
        kinds = [name for name in plan.kinds if name not in outcome.skipped_kinds]
        wait_flowing(run, time.time(), RECOVERY_TIMEOUT_S)
        memory = {one.name: one.rss_mib() for one in run.rig.services.all()}
        limit = time.monotonic() + plan.minutes * 60
        for one in plan_rounds(plan.seed, kinds):
            if len(outcome.windows) >= plan.faults or time.monotonic() > limit:
                break
            outcome.windows += _strike(run, one, outcome, tell)
        _send_the_rest(run, plan, limit)
        finish(run, outcome, tell)
        outcome.memory_mib = {one.name: (memory.get(one.name), one.rss_mib()) for one in run.rig.services.all()}
        if len(outcome.windows) < plan.faults or len(run.account.asked) < plan.requests:
            what = f"{len(outcome.windows)} faults and {len(run.account.asked)} requests in {plan.minutes:g} minutes"
            outcome.verdict.add(Finding("incomplete", what, time.time()))
    return outcome


def finish(run: Running, outcome: Outcome, tell: Tell) -> None:
    """Ends the load, waits until nothing is outstanding, and judges."""
    run.rig.load.stop()
    outcome.load_s = time.time() - outcome.began_at
    tell(f"{len(run.account.asked)} requests acknowledged; waiting until everything is answered and logged")
    late: list[Finding] = []

    def drained() -> bool:
        try:
            return (
                run.reader.has_consumed(_WORKER_GROUP, f"{PREFIX}requests")
                and run.reader.has_consumed(_SINK_GROUP, f"{PREFIX}events")
                and run.reader.is_at_end()
            )
        except KafkaException:
            return False

    try:
        outcome.drain_s = wait_until(drained, _DRAIN_TIMEOUT_S, "committed offsets are at the ends", look_s=1.0)
    except NotInTimeError as error:
        late.append(Finding("not drained", str(error), time.time()))
    outcome.verdict = judge(run.account, run.log.read(), outcome.windows)
    outcome.exits = {command: dict(codes) for command, codes in run.rig.services.exits.items()}
    late += [
        Finding(
            "not recovered", f"{one.kind} of {one.target}: answers {one.answers_s}, rows {one.rows_s}", one.began_at
        )
        for one in outcome.windows
        if one.answers_s is None or one.rows_s is None
    ]
    for finding in late:
        outcome.verdict.add(finding)


def _strike(run: Running, planned: Round, outcome: Outcome, tell: Tell) -> list[Window]:
    """One round: the pause before it, its faults side by side, and everything flowing again."""
    _hold_until(time.monotonic() + planned.gap_s)
    begun: list[tuple[float, Planned, str, float, End]] = []
    windows = []
    try:
        for fault in planned.faults:
            began_at = time.time()
            tell(f"{fault.kind.name} begins")
            victim, end = begin(run.rig, fault)
            begun.append((time.monotonic() + fault.hold_s, fault, victim, began_at, end))
        begun.sort(key=lambda one: one[0])
        while begun:
            _hold_until(begun[0][0])
            _, fault, victim, began_at, end = begun.pop(0)
            end()
            windows.append(Window(fault.kind.name, victim, began_at, time.time()))
    finally:
        for *_, end in begun:  # only after an error: nothing stays paused
            end()
    answers_s, rows_s = wait_flowing(run, time.time(), RECOVERY_TIMEOUT_S)
    names = " + ".join(f"{one.kind} ({one.target})" for one in windows)
    tell(
        f"{len(outcome.windows) + len(windows)}: {names}: answers after {_seconds(answers_s)}, "
        f"rows after {_seconds(rows_s)}, {len(run.account.asked)} requests so far"
    )
    return [replace(one, answers_s=answers_s, rows_s=rows_s) for one in windows]


def wait_flowing(run: Running, since: float, timeout_s: float) -> tuple[float | None, float | None]:
    """Waits until every partition has answered a request acknowledged after `since`, and those have their rows.

    Returns:
        Seconds until the answers, and until the rows; None for what did not come.
    """
    began = time.monotonic()

    def answers_flow() -> bool:
        newest = run.account.newest_answered()
        return all(number in newest and newest[number].acked_at > since for number in range(_PARTITIONS))

    try:
        wait_until(answers_flow, timeout_s, "answers")
    except NotInTimeError:
        return None, None
    answers_s = time.monotonic() - began
    ids = [asked.answer_id(run.account.requests_topic) for asked in run.account.newest_answered().values()]

    def rows_flow() -> bool:
        try:
            return run.log.count_requests(ids) == len(set(ids))
        except QueryFailedError:
            return False

    try:
        wait_until(rows_flow, timeout_s, "rows", look_s=0.25)
    except NotInTimeError:
        return answers_s, None
    return answers_s, time.monotonic() - began


def _send_the_rest(run: Running, plan: Plan, limit: float) -> None:
    """The load goes on until it is as large as planned, or the time is over."""
    while len(run.account.asked) < plan.requests and time.monotonic() < limit:
        time.sleep(_TICK_S)


def _hold_until(due: float) -> None:
    while (left_s := due - time.monotonic()) > 0:
        time.sleep(min(left_s, _TICK_S))


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"

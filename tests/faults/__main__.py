"""`python -m tests.faults`: exit code 0 only if everything held."""

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.faults.campaign import Plan, run_faults
from tests.faults.report import figures_of, render
from tests.faults.rolling import run_rolling
from tests.faults.schedule import KINDS

_FIGURES = "figures.json"


def main(arguments: list[str]) -> int:
    """Runs a scenario, writes its figures and its report."""
    options = _parser().parse_args(arguments)
    data_dir = Path(options.data or tempfile.mkdtemp(prefix="pipeline-faults-")).absolute()
    data_dir.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        seed=options.seed,
        requests=options.requests,
        faults=options.faults,
        rate=options.rate,
        minutes=options.minutes,
        burst=options.burst,
        kinds=tuple(options.kind or KINDS),
    )
    command = f"python -m tests.faults --seed {plan.seed} --requests {plan.requests} --faults {plan.faults}"
    command += f" --rate {plan.rate:g} --burst {plan.burst}" + "".join(f" --kind '{one}'" for one in options.kind or ())
    _tell(f"data and logs: {data_dir}")
    if options.scenario == "rolling":
        static, dynamic = (2, 0) if options.named else (0, 2)
        outcome, rolling = run_rolling(data_dir, replace(plan, static_workers=static, dynamic_workers=dynamic), _tell)
        figures = figures_of(outcome, command) | {"rolling": rolling}
        _tell(json.dumps(rolling, indent=2))
    else:
        figures = figures_of(run_faults(data_dir, plan, _tell), command)
        if options.report is not None:
            options.report.write_text(render(figures), encoding="utf-8")
    (data_dir / _FIGURES).write_text(json.dumps(figures, indent=2))
    return _conclude(figures, data_dir, keep=options.keep_data)


def _conclude(figures: dict[str, Any], data_dir: Path, *, keep: bool) -> int:
    for name, count in figures["counts"].items():
        _tell(f"{name}: {count:,}")
    for example in figures["examples"]:
        _tell(example)
    if figures["holds"] and not keep:
        shutil.rmtree(data_dir)
    else:
        _tell(f"kept: {data_dir}")
    _tell("everything held" if figures["holds"] else f"BROKEN: {figures['broken']}")
    return 0 if figures["holds"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__)
    parser.add_argument("--scenario", choices=("faults", "rolling"), default="faults")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and the requests")
    parser.add_argument("--requests", type=int, default=200_000, help="at least so many")
    parser.add_argument("--faults", type=int, default=120, help="at least so many; restarts of the rolling scenario")
    parser.add_argument("--rate", type=float, default=120.0, help="requests per second besides bursts")
    parser.add_argument("--minutes", type=float, default=45.0, help="the run ends then, and is incomplete")
    parser.add_argument("--burst", type=int, default=10_000, help="requests of a refill")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only these faults; may be repeated")
    parser.add_argument("--named", action="store_true", help="rolling: workers with an instance id (static members)")
    parser.add_argument("--report", type=Path, help="where the report goes")
    parser.add_argument("--data", type=Path, help="an empty folder for data and logs")
    parser.add_argument("--keep-data", action="store_true", help="keep it also when everything held")
    return parser


def _tell(line: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

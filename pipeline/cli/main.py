"""The program `pipeline`: every command, and how errors and exit codes come out.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C. Commands import what they need when they run, so
that `--help` is there at once.
"""

import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from pipeline.cli import (
    bench,
    cache,
    dead_letter,
    demo,
    doctor,
    keys,
    models,
    processes,
    sql,
    status,
    submit,
    topics,
    up,
    webhooks,
)


class _OneLineErrors(TyperGroup):
    """Ends a command that failed with one clear line; a bug of ours keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if not isinstance(error, expected_errors()):
                raise
            for line in error_lines(error):
                typer.echo(f"pipeline: {line}", err=True)
            raise typer.Exit(1) from error


def expected_errors() -> tuple[type[Exception], ...]:
    """The errors that tell of the world, not of a bug; only of modules that were loaded, as loading takes time."""
    named = (
        ("pipeline.errors", "PipelineError"),
        ("schemas.errors", "WireError"),
        ("aiokafka.errors", "KafkaError"),
    )
    return tuple(getattr(sys.modules[module], name) for module, name in named if module in sys.modules)


def error_lines(error: Exception) -> list[str]:
    """An expected error in words: one line; of several servers or topics that are at fault, one for each."""
    text = str(error) or type(error).__name__
    if type(error).__name__ == "KafkaConnectionError":
        return ["Kafka does not answer: is PIPELINE_KAFKA__BOOTSTRAP_SERVERS right, and does it run?"]
    if type(error).__name__ in {"StackError", "TopicError"}:
        return text.splitlines()
    return [" ".join(text.split())]


app = typer.Typer(
    cls=_OneLineErrors,
    help="An inference acceleration engine: Kafka in, a cache, Triton on a miss, every event in ClickHouse.",
    epilog="Example: pipeline demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
demo.add_to(app)
up.add_to(app)
status.add_to(app)
processes.add_to(app)
webhooks.add_to(app)
submit.add_to(app)
sql.add_to(app)
topics.add_to(app)
keys.add_to(app)
cache.add_to(app)
dead_letter.add_to(app)
models.add_to(app)
bench.add_to(app)
doctor.add_to(app)


def main() -> NoReturn:
    """Runs the command line and ends the process with its exit code."""
    app()
    sys.exit(0)

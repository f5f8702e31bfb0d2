"""The command `demo`, step by step."""

import asyncio
import secrets
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pipeline.cli.demo.sending import Answered
    from pipeline.cli.up import StateLines
    from pipeline.config import Settings


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(epilog="Example: pipeline demo")(demo)


def demo() -> None:
    """Start everything, send real requests, check every answer, show what happened, stop. A stack that runs is used."""
    from pipeline.cli.context import quiet_libraries, with_endpoints
    from pipeline.cli.up import StateLines
    from pipeline.config import load_settings
    from pipeline.stack.state import read_running

    quiet_libraries()
    settings, lines = load_settings(), StateLines()
    running = read_running(settings.data_dir)
    if running is None:
        raise typer.Exit(asyncio.run(_on_own_stack(settings, lines)))
    lines.tell(f"the stack that runs in {settings.data_dir} is used, and stays up")
    raise typer.Exit(asyncio.run(_show(with_endpoints(settings, running.endpoints), lines)))


async def _on_own_stack(settings: "Settings", lines: "StateLines") -> int:
    from pipeline.cli.local_pipeline import plan_stack, start_all
    from pipeline.stack import Stack

    code = 1
    async with Stack(plan_stack(settings), lines.change) as stack:
        full = await start_all(stack, settings, 1, lines.tell)
        code = await _show(full, lines)
        lines.tell("stopping everything")
    # Ctrl-C ends the block above quietly; the code of a program ended by SIGINT is 130, by SIGTERM 143.
    return code if stack.stop_signal is None else 128 + stack.stop_signal


async def _show(settings: "Settings", lines: "StateLines") -> int:
    """Sends, checks and shows; returns the exit code: 0 only if every check holds."""
    from pipeline.cli.demo.requests import digit_requests, sentence_requests
    from pipeline.cli.demo.sending import send_all
    from pipeline.cli.demo.summary import print_summary
    from pipeline.cli.demo.verification import check_rows, verify

    # A tenant of its own: nobody else's cached answers, and rows that one WHERE finds.
    tenant = f"demo-{secrets.token_hex(4)}"
    digits, sentences = await asyncio.to_thread(digit_requests), sentence_requests()
    lines.tell(f"sending {len(digits)} digits and {len(sentences)} sentences as tenant {tenant}")
    answered: list[Answered] = await send_all(settings, tenant, [*digits, *sentences])
    lines.tell("comparing every answer with onnxruntime in this process")
    mismatches = await asyncio.to_thread(verify, settings, answered)
    lines.tell("waiting for every row to arrive in ClickHouse")
    log = await check_rows(settings, tenant, sent=len(digits) + len(sentences))
    return print_summary(answered, mismatches, log)

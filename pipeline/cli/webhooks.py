"""`webhooks`: delivers callbacks, in the foreground, until SIGTERM or Ctrl-C."""

import typer


def add_to(app: typer.Typer) -> None:
    """Adds this module's command."""
    app.command(
        epilog="""Example: PIPELINE_WEBHOOKS__SECRETS='{"acme": ["whsec_…"]}' """
        "pipeline webhooks"
    )(webhooks)


def webhooks() -> None:
    """Deliver results to the `callback` of their requests, signed, and again until they are there. Start one or two."""
    from pipeline.cli.context import effective_settings, log_to_stderr
    from pipeline.webhooks.main import run_webhooks

    settings = effective_settings()
    log_to_stderr(settings.log)
    raise typer.Exit(run_webhooks(settings))

"""Settings of callbacks: secrets, tiers, topics, and what a wrong one says."""

import json

import pytest
import typer
from pydantic import SecretStr
from typer.testing import CliRunner

from pipeline.adapters.topics import plan_topics, webhook_topics
from pipeline.cli import webhooks
from pipeline.config import Settings, load_settings
from pipeline.errors import SettingsError
from pipeline.webhooks.main import WebhooksProcess, signing_keys
from tests.webhooks.callbacks import OLD_SECRET, SECRET

DAY_MS = 86_400_000


def test_secrets_come_by_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON in a variable, the current secret first; nothing shows them."""
    monkeypatch.setenv("PIPELINE_WEBHOOKS__SECRETS", json.dumps({"": [SECRET], "acme": [OLD_SECRET, SECRET]}))
    settings = load_settings().webhooks
    keys = signing_keys(settings.secrets)
    assert ({tenant: len(some) for tenant, some in keys.items()}, keys["acme"][1]) == ({"": 1, "acme": 2}, keys[""][0])
    assert SECRET[6:] not in repr(settings)


def test_wrong_secret_is_named_and_not_shown() -> None:
    """The line says whose, which, and what was expected."""
    with pytest.raises(SettingsError) as caught:
        signing_keys({"": (SecretStr(SECRET),), "acme": (SecretStr(SECRET), SecretStr("whsec_c2hvcnQ="))})
    assert str(caught.value) == (
        "setting PIPELINE_WEBHOOKS__SECRETS (webhooks.secrets in pipeline.toml): tenant 'acme', secret 2: "
        "expected 24 to 64 bytes behind whsec_, got 5"
    )


@pytest.mark.parametrize("tiers", ["[]", "[5, 5]", "[30, 5]", "[0]", "[-1]", "[1, 1.0001]", "[99999]"])
def test_wrong_tiers_are_named(monkeypatch: pytest.MonkeyPatch, tiers: str) -> None:
    """Tiers are times in order, each with a topic of its own."""
    monkeypatch.setenv("PIPELINE_WEBHOOKS__TIERS_S", tiers)
    with pytest.raises(SettingsError, match="PIPELINE_WEBHOOKS__TIERS_S"):
        load_settings()


def test_process_needs_kafka() -> None:
    """Without an address nothing starts."""
    with pytest.raises(SettingsError, match="PIPELINE_KAFKA__BOOTSTRAP_SERVERS"):
        WebhooksProcess(Settings())


def test_topics_are_named_after_their_tiers() -> None:
    """The contract's topic and a topic for each tier, kept for a week whatever their size, as large as a result."""
    settings = Settings()
    assert webhook_topics(settings) == {
        "webhooks": 0, "webhooks.5s": 5, "webhooks.30s": 30, "webhooks.5m": 300, "webhooks.30m": 1800,
        "webhooks.2h": 7200, "webhooks.6h": 21_600,
    }  # fmt: skip
    plans = {plan.name: plan for plan in plan_topics(settings, 6, replicas=3)}
    results = plans["inference.results"].configs
    for name in webhook_topics(settings):
        plan = plans[f"inference.{name}"]
        assert plan.partitions == 6
        assert plan.configs["max.message.bytes"] == results["max.message.bytes"]
        assert (plan.configs["cleanup.policy"], plan.configs["retention.bytes"]) == ("delete", "-1")
        assert int(plan.configs["retention.ms"]) == 7 * DAY_MS > 2 * 1000 * settings.webhooks.tiers_s[-1]


def test_help_has_an_example() -> None:
    """The command's help ends with a line to copy."""
    app = typer.Typer(pretty_exceptions_enable=False)
    webhooks.add_to(app)
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "pipeline webhooks" in result.stdout.split("Example: ")[1]

"""Settings: where they come from, and what a wrong one says."""

from pathlib import Path

import pytest

from pipeline.config import load_settings
from pipeline.errors import SettingsError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without a `pipeline.toml`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_environment_goes_before_the_file(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable wins over `pipeline.toml`, and the file over the default."""
    (empty_folder / "pipeline.toml").write_text('[kafka]\npartitions = 8\ntopic_prefix = "a."\n')
    monkeypatch.setenv("PIPELINE_KAFKA__TOPIC_PREFIX", "b.")
    settings = load_settings()
    assert (settings.kafka.partitions, settings.topic("requests")) == (8, "b.requests")


def test_triton_addresses_are_a_comma_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces around the addresses do not matter."""
    monkeypatch.setenv("PIPELINE_TRITON__URLS", "one:8001, two:8001,")
    assert load_settings().triton.urls == ("one:8001", "two:8001")


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        (
            "PIPELINE_KAFKA__PARTITIONS",
            "many",
            "setting PIPELINE_KAFKA__PARTITIONS (kafka.partitions in pipeline.toml): ",
        ),
        ("PIPELINE_CACHE__MAX_BYTES", "-1", "setting PIPELINE_CACHE__MAX_BYTES (cache.max_bytes in pipeline.toml): "),
        ("PIPELINE_KAFKA__PARTITION", "4", "setting PIPELINE_KAFKA__PARTITION (kafka.partition in pipeline.toml): "),
        ("PIPELINE_DATADIR", "x", "PIPELINE_DATADIR is no setting, did you mean PIPELINE_DATA_DIR; "),
        ("PIPELINE_KAFAK__PARTITIONS", "4", "PIPELINE_KAFAK__PARTITIONS is no setting, did you mean PIPELINE_KAFKA; "),
    ],
)
def test_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str) -> None:
    """A wrong or misspelt setting stops the start with one line that names it."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("docker restart {name}", "has the field {name}: {instance}, {address}, {host}, {port} are known"),
        ("docker restart {}", "has the field {}: "),
        ("docker restart '{instance}", "is no command: No closing quotation"),
        ("docker restart {instance", "is no command: "),
    ],
)
def test_restart_command_is_checked_at_the_start(monkeypatch: pytest.MonkeyPatch, command: str, words: str) -> None:
    """A command that could never be run is told with its setting, what it is, and what is known."""
    monkeypatch.setenv("PIPELINE_WATCHER__RESTART_COMMAND", command)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    line = str(caught.value)
    assert line.startswith("setting PIPELINE_WATCHER__RESTART_COMMAND (watcher.restart_command in pipeline.toml): ")
    assert repr(command) in line
    assert words in line


def test_restart_command_may_be_any_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields stand where they are wanted, in quotes too; an empty command is none; reload is the default."""
    assert (load_settings().watcher.strategy, load_settings().watcher.restart_command) == ("reload", None)
    for command in ("docker restart {instance}", "ssh {host} 'systemctl restart triton@{port}'", "say {{{address}}}"):
        monkeypatch.setenv("PIPELINE_WATCHER__RESTART_COMMAND", command)
        assert load_settings().watcher.restart_command == command
    monkeypatch.setenv("PIPELINE_WATCHER__RESTART_COMMAND", " ")
    assert load_settings().watcher.restart_command is None


def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes sets variables for a service that happens to be named like us."""
    monkeypatch.setenv("PIPELINE_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("PIPELINE_PORT", "tcp://10.0.0.1:80")
    assert load_settings().kafka.partitions == 4


def test_secrets_are_never_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong setting beside a secret does not print the secret, nor do the settings themselves."""
    monkeypatch.setenv("PIPELINE_KAFKA__SASL_PASSWORD", "hunter2")
    assert "hunter2" not in repr(load_settings())
    monkeypatch.setenv("PIPELINE_KAFKA__SASL_MECHANISM", "FOO")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_broken_file_is_named(empty_folder: Path) -> None:
    """A `pipeline.toml` that is no TOML stops the start with one line."""
    (empty_folder / "pipeline.toml").write_text("kafka = [")
    with pytest.raises(SettingsError, match=r"^pipeline\.toml cannot be read: "):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("PIPELINE_LOG__FORMAT", "xml", "'xml' was given, one of text, json was expected"),
        ("PIPELINE_LOG__LEVEL", "loud", "'loud' was given, one of DEBUG, INFO, WARNING, ERROR was expected"),
        ("PIPELINE_LOG__LEVEL", "", "'' was given, one of DEBUG"),
    ],
)
def test_wrong_log_setting_says_what_was_expected(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    """The setting's name, its value, and the words that are known."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"setting {name} (")
    assert expected in str(caught.value)


def test_log_settings_are_words_of_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text at INFO unless it is said otherwise, and the gateway writes no line for what went well."""
    settings = load_settings()
    assert (settings.log.format, settings.log.level, settings.gateway.access_log) == ("text", "INFO", False)
    monkeypatch.setenv("PIPELINE_LOG__FORMAT", "JSON")
    monkeypatch.setenv("PIPELINE_LOG__LEVEL", "debug")
    assert (load_settings().log.format, load_settings().log.level) == ("json", "DEBUG")

"""What the parser makes of Triton's recorded output."""

from pathlib import Path

from pipeline.stack.triton_output import ModelPhase, TritonOutput

RECORDED = Path(__file__).parent / "recorded"
FAILED = ("bad", "nofile", "raises", "missing", "syntax")


def read(name: str) -> TritonOutput:
    output = TritonOutput()
    for line in (RECORDED / name).read_text().splitlines():
        output.feed(line)
    return output


def test_ready_versions_are_known() -> None:
    """Every version of the READY table is loaded, and no requested model is missing."""
    output = read("triton_all_loaded.txt")
    ready = {key for key, state in output.versions.items() if state.phase is ModelPhase.READY}
    assert ready == {("digits", "1"), ("digits", "2"), ("pyecho", "1")}
    assert output.is_settled(("digits", "pyecho"))
    assert output.failures(("digits", "pyecho")) == {}


def test_start_is_unsettled_until_grpc_serves() -> None:
    """A loaded table alone does not end the start: the service line does."""
    output = TritonOutput()
    for line in (RECORDED / "triton_all_loaded.txt").read_text().splitlines():
        if "Started GRPCInferenceService" in line:
            assert not output.is_settled(("digits",))
        output.feed(line)
    assert output.is_settled(("digits",))


def test_failed_models_do_not_hide_others() -> None:
    """Each failing model has its own reason, in one line; the good one is READY."""
    lines = (RECORDED / "triton_some_failed.txt").read_text().split("Signal (15)")[0].splitlines()
    output = TritonOutput()
    for line in lines:
        output.feed(line)
    failures = output.failures((*FAILED, "digits"))
    assert set(failures) == set(FAILED)
    assert "No module named 'nothing_such'" in failures["raises"]
    assert "INVALID_PROTOBUF" in failures["bad"]
    assert "File doesn't exist" in failures["nofile"]
    assert "not found in any model repository" in failures["missing"]
    assert 'no field named "bakend"' in failures["syntax"]
    assert not any("\n" in why or "\\n" in why for why in failures.values())
    assert output.versions["digits", "2"].phase is ModelPhase.READY
    assert output.versions["pyecho", "1"].phase is ModelPhase.UNLOADED
    assert not output.fatal


def test_unmentioned_model_is_a_failure() -> None:
    """A requested model the server never speaks of is not taken for loaded."""
    assert "ghost" in read("triton_all_loaded.txt").failures(("ghost",))


def test_server_error_ends_the_start() -> None:
    """A server that gives up settles the start with its reason."""
    output = TritonOutput()
    output.feed("error: creating server: Internal - failed to load all models")
    assert output.is_settled(("digits",))
    assert output.fatal.startswith("creating server")

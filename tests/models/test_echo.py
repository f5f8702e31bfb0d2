"""The echo model that other tests serve: it must do what they lean on."""

import numpy as np
import pytest

from .folders import ECHO, read_config
from .python_backend import InferenceRequest, LoadedModel, TritonError, load_python_model

DATATYPES = [
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BYTES",
]
"""Every datatype of the Open Inference Protocol."""

ROW = np.ones((1, 2), np.float32)


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """Returns the model as Triton loads it."""
    return load_python_model(monkeypatch, ECHO / "1" / "model.py", read_config(ECHO), ECHO / "1")


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_has_an_echo(datatype: str) -> None:
    """Each datatype of the protocol has an optional input and an output of the same type and any length."""
    config = read_config(ECHO)
    data_type = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    expected = {"name": datatype.lower(), "data_type": data_type, "dims": ["-1"], "optional": True}
    assert expected in config["input"]
    assert {"name": f"{datatype.lower()}_echo", "data_type": data_type, "dims": ["-1"]} in config["output"]


def test_echo_returns_only_what_was_sent(echo: LoadedModel) -> None:
    """A request gets the echoes of its own inputs and no other outputs."""
    text = np.array([[b"\xff\0", b""]], np.object_)
    (answer,) = echo.execute({"fp32": ROW, "bytes": text, "fail": np.array([[False]])})
    assert isinstance(answer, dict)
    assert sorted(answer) == ["bytes_echo", "fp32_echo"]
    np.testing.assert_array_equal(answer["fp32_echo"], ROW)
    np.testing.assert_array_equal(answer["bytes_echo"], text)


def test_true_row_fails_its_request(echo: LoadedModel) -> None:
    """A true row in input `fail` fails the request it came in with INVALID_ARG, and no other."""
    bad, good = echo.execute({"fp32": ROW, "fail": np.array([[True]])}, {"fp32": ROW})
    assert isinstance(bad, TritonError)
    assert bad.code == TritonError.INVALID_ARG
    assert isinstance(good, dict)


@pytest.mark.parametrize(("fail", "message"), [(True, "failed as parameter 'fail' asks"), ("out of ink", "out of ink")])
def test_fail_parameter_fails_its_request(echo: LoadedModel, fail: object, message: str) -> None:
    """Parameter `fail` fails its request with INTERNAL and with the text it gives, and no other."""
    bad, good = echo.execute_requests(InferenceRequest({"fp32": ROW}, {"fail": fail}), InferenceRequest({"fp32": ROW}))
    assert isinstance(bad, TritonError)
    assert (bad.code, bad.message) == (TritonError.INTERNAL, message)
    assert isinstance(good, dict)

"""Model folders in tests: where they are, their configuration, their scripts."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

PROJECT = Path(__file__).resolve().parents[2]
MODEL_REPOSITORY = PROJECT / "model_repository"
DIGITS = MODEL_REPOSITORY / "digits"
SENTENCES = MODEL_REPOSITORY / "sentences"
ECHO = Path(__file__).resolve().parent / "echo"
ONNX_BACKEND = PROJECT / "infra" / "triton" / "backends" / "onnxruntime" / "model.py"


def read_config(model_folder: Path) -> dict[str, Any]:
    """Returns a model's config.pbtxt as Triton hands it to a Python model: field names of the proto, 64 bits as text.

    Raises:
        google.protobuf.text_format.ParseError: it is not a model configuration.
    """
    text = (model_folder / "config.pbtxt").read_text(encoding="utf-8")
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    return json_format.MessageToDict(config, preserving_proto_field_name=True)


def read_sample(model_folder: Path) -> dict[str, Any]:
    """Returns a model's sample request with its expected outputs."""
    sample: dict[str, Any] = json.loads((model_folder / "sample.json").read_text(encoding="utf-8"))
    return sample


def load_module(path: Path) -> ModuleType:
    """Runs a Python file that is in no package and returns it as a module of its own, new on each call."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

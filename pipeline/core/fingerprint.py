"""A version's fingerprint: a digest of everything that can change its answers.

Covered: the served files (relative paths and contents), the configuration's parts that reach the model, and the
script that made files where a build step did. Left out of the configuration: `version_policy`, the number and place
of instances, `dynamic_batching`, warm-up and metrics, Triton's response cache (off), and the parameters that speak to
the pipeline. They decide when and where a model runs, not what it answers. The *kind* of the instances stays in: a
GPU rounds otherwise than a CPU.
"""

import json
from collections.abc import Mapping

from blake3 import blake3
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from pipeline.core.model_config import PIPELINE_PARAMETERS, ModelConfig

_NO_ANSWER_DEPENDS_ON = (
    "version_policy", "instance_group", "dynamic_batching", "model_warmup", "metric_tags", "model_metrics",
    "response_cache",
)  # fmt: skip


def answer_config(config: ModelConfig) -> str:
    """The parts of a completed configuration that can change an answer, as canonical JSON."""
    part = model_config_pb2.ModelConfig()
    part.CopyFrom(config)
    kinds = sorted({model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind) for group in config.instance_group})
    for name in _NO_ANSWER_DEPENDS_ON:
        part.ClearField(name)
    for name in PIPELINE_PARAMETERS & set(part.parameters):
        del part.parameters[name]
    fields = json_format.MessageToDict(part, preserving_proto_field_name=True)
    return json.dumps({"config": fields, "instance_kinds": kinds}, sort_keys=True, ensure_ascii=False)


def fingerprint(files: Mapping[str, bytes], config: str = "", build_script: bytes = b"") -> str:
    """64 hex characters.

    Args:
        files: relative POSIX path -> BLAKE3 digest of the content.
        config: what `answer_config` gave.
        build_script: the content of the script that made some of the files; empty where none did.
    """
    # Every part has its length in front, so no two different contents have one encoding.
    digest = blake3(len(files).to_bytes(8, "little"))
    for path, content in sorted(files.items()):
        digest.update(_framed(path.encode("utf-8", "surrogateescape")))
        digest.update(_framed(content))
    digest.update(_framed(config.encode()))
    digest.update(_framed(build_script))
    return digest.hexdigest()


def _framed(part: bytes) -> bytes:
    return len(part).to_bytes(8, "little") + part

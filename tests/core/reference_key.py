"""The keys again, written from docs/cache-key.md alone: what another language would need, and nothing of the product.

It reads what the vectors say; it refuses nothing, as validation is no part of the keys.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from blake3 import blake3

CODES = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP32": "f", "FP64": "d",
}  # fmt: skip
NOT_KEYED = ("binary_", "sequence_")


def sized(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def text(value: str) -> bytes:
    return sized(value.encode())


def name(value: str | None) -> bytes:
    return b"\x00" if value is None else b"\x01" + text(value)


def parameters(members: Mapping[str, Any]) -> bytes:
    parts = [struct.pack("<I", len(members))]
    for key, value in sorted(members.items()):
        kind = {bool: b"b", int: b"i", float: b"f", str: b"s"}[type(value)]
        written = text(value) if kind == b"s" else struct.pack({b"b": "<?", b"i": "<q", b"f": "<d"}[kind], value)
        parts += [text(key), kind, written]
    return b"".join(parts)


def raw(tensor: Mapping[str, Any]) -> bytes:
    flat = [tensor["data"]]
    while flat and isinstance(flat[0], list):
        flat = [element for part in flat for element in part]
    if tensor["datatype"] == "BYTES":
        return b"".join(text(element) for element in flat)
    return struct.pack(f"<{len(flat)}{CODES[tensor['datatype']]}", *flat)


def content(request: Mapping[str, Any], tail: bytes) -> bytes:
    """The encoding whose digest is the content."""
    inputs = {}
    for tensor in request["inputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        data, tail = (raw(tensor), tail) if size is None else (tail[:size], tail[size:])
        shape = struct.pack(f"<B{len(tensor['shape'])}q", len(tensor["shape"]), *tensor["shape"])
        encoded = text(tensor["name"]) + text(tensor["datatype"]) + shape + struct.pack("<Q", len(data)) + data
        inputs[tensor["name"]] = encoded
    keyed = {
        key: value
        for key, value in (request.get("parameters") or {}).items()
        if not key.startswith(NOT_KEYED) and key not in {"priority", "timeout"}
    }
    ordered = b"".join(encoded for _, encoded in sorted(inputs.items()))
    return b"content/1" + struct.pack("<I", len(inputs)) + ordered + parameters(keyed)


def outputs(request: Mapping[str, Any], declared: Sequence[str]) -> bytes:
    asked = request.get("outputs") or [{"name": output} for output in declared]
    parts = [struct.pack("<I", len(asked))]
    for output in asked:
        members = output.get("parameters", {}).items()
        kept = {key: value for key, value in members if not key.startswith("binary_")}
        parts += [text(output["name"]), parameters(kept)]
    return b"".join(parts)


def request_digest(request: Mapping[str, Any], digest: bytes) -> str:
    reply, callback, asked = (request.get(member) for member in ("reply_to", "callback", "outputs"))
    place = "" if reply is None else f"{reply['partition']}/{reply.get('topic') or ''}"
    timeout = "" if request.get("timeout_ms") is None else request["timeout_ms"]
    switches = f"{request.get('stream', False):d}{request.get('enable_cache', True):d}|{timeout}|{place}"
    fields = [request.get(member) for member in ("tenant", "model_name", "model_version", "cache_control")]
    fields += [None if callback is None else callback["url"], switches]
    encoded = sized(b"request/1") + b"".join(map(name, fields)) + digest
    if asked is None:
        encoded += b"\x00"
    else:
        written = b"".join(text(output["name"]) + parameters(output.get("parameters", {})) for output in asked)
        encoded += b"\x01" + struct.pack("<I", len(asked)) + written
    if request.get("parameters"):
        encoded += parameters(request["parameters"])
    return blake3(encoded).hexdigest(16)


def keys_of_vector(vector: Mapping[str, Any]) -> dict[str, str]:
    """What a vector must come to, from its ingredients alone."""
    value = bytes.fromhex(vector["value_hex"])
    length = int(vector["json_bytes"] or len(value))
    request = json.loads(value[:length])
    encoding = content(request, value[length:])
    digest = blake3(encoding).digest()
    owner = name(request.get("tenant")) + name(request["model_name"])
    answering = name(vector["version"]) + name(vector["fingerprint"])
    asked = outputs(request, vector["model_outputs"])
    return {
        "content_encoding": encoding.hex(),
        "content": digest.hex(),
        "cache_key": blake3(sized(b"cache/1") + owner + answering + digest + asked).hexdigest(),
        "partition_key": blake3(sized(b"partition/1") + owner + digest).hexdigest(16),
        "request_digest": request_digest(request, digest),
    }

"""The generated documents: fresh, valid, and true of the code.

`asyncapi-3.0.0.json` beside this file is the schema of AsyncAPI documents from the npm package `@asyncapi/specs`
6.11.1 (`schemas/3.0.0-without-$id.json`, white space removed); Copyright AsyncAPI Initiative, Apache License 2.0.
"""

import base64
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given

from pipeline.config import KafkaSettings, LimitSettings, WorkerSettings
from schemas.asyncapi import LOCAL, TopicLayout, asyncapi_document
from schemas.documents import main, rendered, write_documents
from schemas.errors import WireError
from schemas.event import Event, RequestEnd
from schemas.examples import binary_request_example, binary_result_example, request_example, result_example
from schemas.json_schemas import json_schemas
from schemas.request import InferenceRequest, decode_request
from schemas.result import decode_result
from schemas.tensor import Tensor
from tests.schemas.records import FAST, body, minimal, requests
from tests.schemas.test_request_decoding import WRONG

ROOT = Path(__file__).parents[2]
SCHEMAS = json_schemas()
ASYNCAPI = asyncapi_document()
MESSAGES: dict[str, Any] = ASYNCAPI["components"]["messages"]
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER
EXAMPLES = [
    (name, example["name"], example) for name, message in MESSAGES.items() for example in message.get("examples", ())
]


def component_validator(reference: str) -> jsonschema.Draft202012Validator:
    """Returns a validator of one of the AsyncAPI document's schemas."""
    schema = {"$ref": reference, "components": ASYNCAPI["components"]}
    return jsonschema.Draft202012Validator(schema, format_checker=FORMATS)


def resolved(document: dict[str, Any], reference: str) -> Any:
    """Returns what a reference within a document points at."""
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


def references(node: Any) -> list[str]:
    """Returns all references below a node."""
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in references(value)]
    return [found for value in node for found in references(value)] if isinstance(node, list) else []


def test_committed_documents_are_fresh() -> None:
    """The documents in docs/ are what the models say today. Repeat: python -m schemas.documents docs."""
    assert {path: (ROOT / "docs" / path).read_text() for path in rendered()} == rendered()
    written = {f"schemas/{path.name}" for path in (ROOT / "docs" / "schemas").iterdir()}
    assert written == {path for path in rendered() if path.startswith("schemas/")}


def test_documents_have_deterministic_text() -> None:
    """The same models give the same bytes, in any process: no sets, no times, no addresses."""
    assert rendered() == rendered()
    assert json.loads(rendered()["asyncapi.json"]) == ASYNCAPI


def test_command_writes_every_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m schemas.documents FOLDER` writes all of them and says where; without a folder it exits with 2."""
    assert main([str(tmp_path)]) == 0
    assert {path: (tmp_path / path).read_text() for path in rendered()} == rendered()
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / path) for path in rendered()]
    assert (main([]), main(["--help"])) == (2, 2)
    assert write_documents(tmp_path) == [tmp_path / path for path in rendered()]


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_json_schema_2020(name: str) -> None:
    """Every document is a valid JSON Schema 2020-12 that stands alone: each reference resolves within it."""
    schema = SCHEMAS[name]
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)
    assert all(resolved(schema, reference) for reference in references(schema))


def test_asyncapi_document_is_valid() -> None:
    """The AsyncAPI document fits the specification's own schema, Kafka bindings included."""
    schema = json.loads((Path(__file__).parent / "asyncapi-3.0.0.json").read_text())
    errors = [f"{list(error.absolute_path)}: {error.message}" for error in
              jsonschema.Draft7Validator(schema).iter_errors(ASYNCAPI)]  # fmt: skip
    assert errors == []


def test_asyncapi_references_resolve() -> None:
    """Every reference in the AsyncAPI document points at something in it, every component is used."""
    found = references(ASYNCAPI)
    assert all(resolved(ASYNCAPI, reference) for reference in found)
    unused = {f"#/components/messages/{name}" for name in MESSAGES} - set(found)
    unused |= {f"#/components/schemas/{name}" for name in ASYNCAPI["components"]["schemas"]} - set(found)
    assert unused == set()


@pytest.mark.parametrize("name", ASYNCAPI["components"]["schemas"])
def test_asyncapi_schemas_are_json_schemas(name: str) -> None:
    """Every schema in the AsyncAPI document is a JSON Schema, of draft 7 too, which the specification builds on."""
    jsonschema.Draft202012Validator.check_schema(ASYNCAPI["components"]["schemas"][name])
    jsonschema.Draft7Validator.check_schema(ASYNCAPI["components"]["schemas"][name])


def test_channels_are_the_contracts_topics() -> None:
    """Every topic of the contract is a channel with its prefix, its partitions and a key."""
    found = {
        channel["address"]: channel["bindings"]["kafka"]["partitions"] for channel in ASYNCAPI["channels"].values()
    }
    assert found == {
        "inference.requests": 4, "inference.results": 4, "inference.chunks": 4, "inference.replies": 16,
        "inference.events": 4, "inference.models": 1, "inference.dead-letter": 4, "inference.webhooks": 4,
        "inference.control": 1,
    }  # fmt: skip
    keyless = {name for name, message in MESSAGES.items() if "bindings" not in message}
    assert keyless == {"EventLines"}


def test_layout_defaults_are_the_settings() -> None:
    """The documented topics are those of the default settings."""
    kafka, limits = KafkaSettings(), LimitSettings()
    assert TopicLayout(
        prefix=kafka.topic_prefix,
        partitions=kafka.partitions,
        reply_partitions=kafka.reply_partitions,
        event_partitions=kafka.event_partitions,
        record_bytes=limits.record_bytes,
        event_record_bytes=limits.event_record_bytes,
        worker_group=WorkerSettings().group,
    ) == LOCAL  # fmt: skip


def test_layout_changes_every_topic() -> None:
    """A document for other settings names their prefix, partitions and group throughout."""
    layout = TopicLayout("acme.", "kafka.example.com:9093", 12, 3, 5, 1 << 20, 4 << 20, "acme-worker")
    document = asyncapi_document(layout)
    kafka = {name: channel["bindings"]["kafka"] for name, channel in document["channels"].items()}
    assert {name: (binding["topic"][:5], binding["partitions"]) for name, binding in kafka.items()} == {
        "requests": ("acme.", 12), "results": ("acme.", 12), "chunks": ("acme.", 12), "replies": ("acme.", 3),
        "events": ("acme.", 5), "models": ("acme.", 1), "deadLetter": ("acme.", 12), "webhooks": ("acme.", 12),
        "control": ("acme.", 1),
    }  # fmt: skip
    assert kafka["events"]["topicConfiguration"]["max.message.bytes"] == 4 << 20
    assert document["servers"]["kafka"]["host"] == "kafka.example.com:9093"
    assert document["operations"]["infer"]["bindings"]["kafka"]["groupId"]["const"] == "acme-worker"


@pytest.mark.parametrize(("message", "name", "example"), EXAMPLES, ids=[f"{m} {n}" for m, n, _ in EXAMPLES])
def test_examples_fit_their_schemas(message: str, name: str, example: dict[str, Any]) -> None:
    """Every example's payload and headers are valid by the schemas that they stand beside."""
    described = MESSAGES[message]
    if "headers" in example:
        component_validator(described["headers"]["$ref"]).validate(example["headers"])
    if "payload" in example and "$ref" in described["payload"]:
        component_validator(described["payload"]["$ref"]).validate(example["payload"])


@pytest.mark.parametrize("index", range(len(MESSAGES["Request"]["examples"])))
def test_request_examples_decode(index: int) -> None:
    """The documented requests are requests, all of their tensors too."""
    payload = MESSAGES["Request"]["examples"][index]["payload"]
    request = decode_request(body(payload))
    assert [tensor.to_tensor().name for tensor in request.inputs] == [tensor["name"] for tensor in payload["inputs"]]


def test_request_example_has_every_member() -> None:
    """The full example shows each member that a request can have."""
    assert set(request_example()) == set(InferenceRequest.model_fields)


@pytest.mark.parametrize("message", ["Result", "Reply"])
@pytest.mark.parametrize("index", [0, 1])
def test_result_examples_decode(message: str, index: int) -> None:
    """The documented results are results, and reading them loses nothing."""
    payload = MESSAGES[message]["examples"][index]["payload"]
    found = decode_result(body(payload)).model_dump(mode="json", exclude_unset=True)
    assert found == payload


def test_binary_examples_decode() -> None:
    """The documented binary records have the length in their headers and the tensors behind the JSON."""
    for message, (value, headers) in {
        "BinaryRequest": binary_request_example(), "BinaryResult": binary_result_example(),
    }.items():  # fmt: skip
        described = MESSAGES[message]
        assert base64.b64decode(described["x-example-base64"]) == value
        assert described["examples"][0]["headers"] == headers
    value, headers = binary_request_example()
    request = decode_request(value, [(name, text.encode()) for name, text in headers.items()])
    assert request.inputs[0].to_tensor() == decode_request(body(request_example())).inputs[0].to_tensor()
    value, headers = binary_result_example()
    result = decode_result(value, [(name, text.encode()) for name, text in headers.items()])
    assert result.output("probabilities") == Tensor("probabilities", "FP32", (1, 3), value[-12:])


def test_event_example_lines_are_events() -> None:
    """Each line of the documented event record is an event; the last one ends the request and carries its result."""
    text = MESSAGES["EventLines"]["examples"][0]["payload"]
    *first, last = text.splitlines(keepends=True)
    assert [Event.model_validate_json(line).event_type for line in first] == ["request.received", "cache.hit"]
    end = RequestEnd.model_validate_json(last)
    assert json.loads(end.result_record) == result_example()
    component_validator("#/components/schemas/RequestEnd").validate(json.loads(last))
    for line in first:
        component_validator("#/components/schemas/Event").validate(json.loads(line))


@FAST
@given(requests())
def test_valid_requests_fit_the_schema(record: dict[str, Any]) -> None:
    """What decode_request takes is valid by the published schema."""
    jsonschema.Draft202012Validator(SCHEMAS["request"], format_checker=FORMATS).validate(record)


# What JSON Schema does not say: 1.0 is an integer there, and integers are numbers of any size; forms of addresses and
# ranges of times are not in it. In Python's patterns, not in ECMAScript's, a line feed may follow the end.
BEYOND_SCHEMA = ("requested_at", "source_ip", "inputs[0].shape[0]")
REFUSED_BY_SCHEMA = [
    changes
    for changes, field in WRONG
    if field not in BEYOND_SCHEMA
    and changes.get("id") != "a\n"
    and not (field == "parameters: 'a'" and type(changes["parameters"]["a"]) is int)
]


@pytest.mark.parametrize("changes", REFUSED_BY_SCHEMA, ids=[str(index) for index in range(len(REFUSED_BY_SCHEMA))])
def test_wrong_requests_break_the_schema(changes: dict[str, Any]) -> None:
    """What decode_request refuses by its members is refused by the published schema too."""
    record = minimal(**changes)
    with pytest.raises(WireError):
        decode_request(body(record))
    assert not jsonschema.Draft202012Validator(SCHEMAS["request"]).is_valid(json.loads(body(record)))

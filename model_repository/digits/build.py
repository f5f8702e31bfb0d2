"""Trains both versions of `digits` and writes them as ONNX.

    python build.py            train, write 1/model.onnx, 2/model.onnx and sample.json
    python build.py --check    measure the committed files again; exit code 1 if one lost accuracy

The graphs are written node by node: four or six standard operators, no converter, and a label of shape
[batch, 1], which is what a Triton model with a batch axis must return. Training repeats byte for byte on one
machine. Other CPUs sum in another order and give other bytes with the same accuracy, so the files are committed
(23 kB together) and what is checked is their accuracy.

Needs numpy, scikit-learn, onnx and onnxruntime. Data: scikit-learn's `load_digits` (see README.md).
"""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Layer = tuple[Floats, Floats]
"""The weights [inputs, outputs] and the bias [outputs] of a fully connected layer."""

MODEL_FOLDER = Path(__file__).resolve().parent

PIXEL_MAX = 16.0
"""A pixel counts the dark dots, of 16, in a 4 x 4 square of the scanned bitmap."""

OPSET = 17
IR_VERSION = 8
"""Opset 17 with IR 8 is read by every onnxruntime since 1.12, so by the ones inside current Triton images."""

ACCURACY = {"1": 0.9444, "2": 0.9759}
"""Accuracy of each version on the 540 test rows, measured when the files were committed."""

ACCURACY_TOLERANCE = 0.001
"""Less than one row of 540 (0.0019): a single answer that changes is noticed."""

SAMPLE_VERSION = "2"
SAMPLE_TOLERANCE = 1e-4
"""Largest accepted difference of a probability; the graph and scikit-learn itself differ by 2.4e-7."""


class Split(NamedTuple):
    """The data: images FP32 [rows, 64] with pixels 0 to 16, labels INT64 [rows]."""

    train_images: Floats
    test_images: Floats
    train_labels: Labels
    test_labels: Labels


def load_split() -> Split:
    """Returns the 1,257 rows to train on and the 540 to test on, the same ones every time."""
    digits = load_digits()
    images = digits.data.astype(np.float32)
    parts = train_test_split(images, digits.target, test_size=0.3, random_state=0, stratify=digits.target)
    return Split(*parts)


def train_logistic_regression(split: Split) -> list[Layer]:
    """Trains version 1. The strong penalty (C=0.05) keeps it visibly weaker than version 2."""
    model = LogisticRegression(max_iter=200, C=0.05)
    model.fit(split.train_images / PIXEL_MAX, split.train_labels)
    return [(model.coef_.T, model.intercept_)]


def train_neural_network(split: Split) -> list[Layer]:
    """Trains version 2, one hidden layer of 64 units."""
    model = MLPClassifier((64,), max_iter=200, random_state=0, alpha=1e-3)
    with warnings.catch_warnings():
        # It stops after 200 rounds, before the loss is flat: the accuracy is what counts here, and it is reached.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(split.train_images / PIXEL_MAX, split.train_labels)
    return list(zip(model.coefs_, model.intercepts_, strict=True))


def classifier_graph(layers: Sequence[Layer], name: str) -> onnx.ModelProto:
    """Writes a classifier of fully connected layers, with Relu between them and Softmax at the end.

    Args:
        layers: from the pixels to the ten scores.
        name: of the graph, shown by ONNX tools.

    Returns:
        A checked model: image FP32 [batch, 64] -> label INT64 [batch, 1], probabilities FP32 [batch, 10].
    """
    nodes = [helper.make_node("Mul", ["image", "pixel_scale"], ["scaled"])]
    constants = [numpy_helper.from_array(np.array(1 / PIXEL_MAX, np.float32), "pixel_scale")]
    last = "scaled"
    for number, (weight, bias) in enumerate(layers):
        if number:
            nodes.append(helper.make_node("Relu", [last], [f"active_{number}"]))
            last = f"active_{number}"
        constants.append(numpy_helper.from_array(np.array(weight, np.float32, order="C"), f"weight_{number}"))
        constants.append(numpy_helper.from_array(np.array(bias, np.float32, order="C"), f"bias_{number}"))
        nodes.append(helper.make_node("Gemm", [last, f"weight_{number}", f"bias_{number}"], [f"score_{number}"]))
        last = f"score_{number}"
    nodes.append(helper.make_node("Softmax", [last], ["probabilities"], axis=1))
    nodes.append(helper.make_node("ArgMax", [last], ["label"], axis=1, keepdims=1))

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 64])
    label = helper.make_tensor_value_info("label", TensorProto.INT64, ["batch", 1])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, name, [image], [label, probabilities], constants)
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="digits/build.py")
    onnx.checker.check_model(model, full_check=True)
    return model


def open_version(version: str) -> onnxruntime.InferenceSession:
    """Opens the committed file of one version on one thread of the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = MODEL_FOLDER / version / "model.onnx"
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure_accuracy(version: str, split: Split) -> float:
    """Returns the share of the test rows that the committed file of `version` labels correctly."""
    (labels,) = open_version(version).run(["label"], {"image": split.test_images})
    return float(np.mean(labels[:, 0] == split.test_labels))


def sample_record(split: Split) -> dict[str, object]:
    """Makes the sample: the first test row that is neither trivial nor in doubt, and version 2's answer to it.

    Returns:
        A request record with its expected outputs, as README.md says.
    """
    labels, probabilities = open_version(SAMPLE_VERSION).run(["label", "probabilities"], {"image": split.test_images})
    correct = labels[:, 0] == split.test_labels
    best = probabilities.max(axis=1)
    row = int(np.argmax(correct & (best > 0.95) & (best < 0.99)))
    image = [int(pixel) for pixel in split.test_images[row]]
    chances = [round(float(chance), 6) for chance in probabilities[row]]
    return {
        "model_name": "digits",
        "model_version": SAMPLE_VERSION,
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 64], "data": image}],
        "outputs": [
            {"name": "label", "datatype": "INT64", "shape": [1, 1], "data": [int(labels[row, 0])]},
            {
                "name": "probabilities",
                "datatype": "FP32",
                "shape": [1, 10],
                "parameters": {"tolerance": SAMPLE_TOLERANCE},
                "data": chances,
            },
        ],
    }


def format_record(record: dict[str, object]) -> str:
    """Returns the record as JSON with one field a line, so that a change shows in a diff and pixels stay together."""
    fields = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items())
    return f"{{\n{fields}\n}}\n"


def write_model() -> None:
    """Trains both versions and writes everything in this folder that is computed."""
    split = load_split()
    for version, layers in (("1", train_logistic_regression(split)), ("2", train_neural_network(split))):
        graph = classifier_graph(layers, f"digits-{version}")
        folder = MODEL_FOLDER / version
        folder.mkdir(exist_ok=True)
        (folder / "model.onnx").write_bytes(graph.SerializeToString(deterministic=True))
    (MODEL_FOLDER / "sample.json").write_text(format_record(sample_record(split)), encoding="utf-8")


def check_accuracy() -> bool:
    """Measures both committed versions on the test rows, prints the figures, and says whether they still hold."""
    split = load_split()
    holds = True
    for version, expected in ACCURACY.items():
        accuracy = measure_accuracy(version, split)
        holds = holds and abs(accuracy - expected) <= ACCURACY_TOLERANCE
        print(f"digits version {version}: accuracy {accuracy:.4f} on {len(split.test_labels)} rows, was {expected:.4f}")
    return holds


def main() -> int:
    """Runs the command line and returns its exit code."""
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only measure the committed files")
    if not parser.parse_args().check:
        write_model()
    return 0 if check_accuracy() else 1


if __name__ == "__main__":
    sys.exit(main())

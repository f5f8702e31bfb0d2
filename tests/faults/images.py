"""Images of digits and their labels: computed by onnxruntime on the model's own file, not by what is tested."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from sklearn.datasets import load_digits

PIXELS = 64
VERSIONS = ("1", "2")
_BATCH = 256
# Two labels nearly as probable could change places by the last bit of a float: such images are no test.
_MARGIN_MIN = 0.05
_CHANGED_PIXELS = 8


class Images:
    """Images that never repeat, with the label each version gives them.

    Args:
        models: the folder of `digits`, with `<version>/model.onnx`.
        seed: of the images.
    """

    def __init__(self, models: Path, seed: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._sessions = [
            onnxruntime.InferenceSession(str(models / version / "model.onnx"), options) for version in VERSIONS
        ]
        self._random = random.Random(seed)
        self._digits: NDArray[np.float32] = load_digits().data.astype(np.float32)
        self._made = self._make()

    def take(self) -> tuple[NDArray[np.float32], dict[str, int]]:
        """An image of [64] pixels, 0 to 16, and its label by version."""
        return next(self._made)

    def _make(self) -> Iterator[tuple[NDArray[np.float32], dict[str, int]]]:
        seen: set[bytes] = set()
        while True:
            batch = self._digits[[self._random.randrange(len(self._digits)) for _ in range(_BATCH)]].copy()
            for row in batch:
                for _ in range(_CHANGED_PIXELS):
                    row[self._random.randrange(PIXELS)] = self._random.randint(0, 16)
            outcomes = [session.run(["label", "probabilities"], {"image": batch}) for session in self._sessions]
            for index, row in enumerate(batch):
                top = [np.sort(probabilities[index])[-2:] for _, probabilities in outcomes]
                if row.tobytes() in seen or any(high - low < _MARGIN_MIN for low, high in top):
                    continue
                seen.add(row.tobytes())
                labels = [int(label[index].item()) for label, _ in outcomes]
                yield row, dict(zip(VERSIONS, labels, strict=True))

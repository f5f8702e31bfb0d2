"""Texts to embeddings: tokenize, sort into runs of like length, run the graph. Knows nothing of Triton."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

Floats = npt.NDArray[np.float32]

TOKENS_MAX = 256
"""Where the model card cuts a text. tokenizer.json itself says 128, and pads to it: both are overruled below."""

EMBEDDING_SIZE = 384


def padded_length(tokens: int) -> int:
    """Returns the length that a text of `tokens` tokens is padded to.

    Always a multiple of 8. The kernels of onnxruntime compute the last tokens of other lengths in another order, so
    that a padded row and an unpadded one differ in their last bits (seen: 3e-8 to 1e-7, at lengths of 7 modulo 8).
    With this padding a text has the same bits in every batch: 0 of 1,701 rows differed on a CPU with AVX-512.

    Above 64 the steps are 32: fewer, larger runs for at most 31 tokens of padding.
    """
    step = 8 if tokens <= 64 else 32
    return -(-tokens // step) * step


class TextEmbedder:
    """Embeds texts with the graph and the tokenizer of one version folder.

    Not for use from several threads at once.
    """

    def __init__(self, version_folder: Path, intra_op_thread_count: int = 1) -> None:
        """Loads `model.onnx` and `tokenizer.json`, in 0.2 s; 150 MB stay in memory.

        Args:
            version_folder: where build.py has written both.
            intra_op_thread_count: threads inside one operator; 0 lets onnxruntime choose.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = intra_op_thread_count
        # A waiting thread must not spin: the core belongs to the other models of the machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = str(version_folder / "model.onnx")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(version_folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(TOKENS_MAX)

    def embed(self, texts: Sequence[str]) -> Floats:
        """Returns the embeddings FP32 [texts, 384], each of length 1, in the order of `texts`.

        Texts of like length run together. One text of 256 tokens would pad all its neighbours otherwise: a mix with
        one of 32 so long went from 11 to 113 texts a second.
        """
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        runs: dict[int, list[int]] = {}
        for row, ids in enumerate(tokens):
            runs.setdefault(padded_length(len(ids)), []).append(row)
        embeddings = np.empty((len(tokens), EMBEDDING_SIZE), np.float32)
        for length, rows in runs.items():
            embeddings[rows] = self._run([tokens[row] for row in rows], length)
        return embeddings

    def _run(self, tokens: Sequence[Sequence[int]], length: int) -> Floats:
        """Runs texts of at most `length` tokens, padded to it; returns FP32 [texts, 384]."""
        input_ids = np.zeros((len(tokens), length), np.int64)
        attention_mask = np.zeros((len(tokens), length), np.int64)
        for row, ids in enumerate(tokens):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        feed = {"input_ids": input_ids, "attention_mask": attention_mask}
        (embeddings,) = self._session.run(["embedding"], feed)
        result: Floats = embeddings
        return result

"""Pictures of handwritten digits, through `pipeline submit`, Kafka, a worker and Triton, to the right labels."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipeline.config import Settings
from tests.cli.picture_samples import encoded, ink_on_paper
from tests.live.processes import ProcessGroup, environment
from tests.models.folders import PROJECT

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

COUNT = 100
# What the model knows of the first 100 rows: it is right on 96, as numbers or as pictures.
RIGHT_MIN = 95


async def submitted(folder: Path, settings: Settings, *arguments: str) -> list[dict[str, Any]]:
    """The answers to a submission."""
    command = (sys.executable, "-m", "pipeline", "submit", *arguments, "--model", "digits", "--output", "-")
    variables = os.environ | environment(settings) | {"PYTHONPATH": str(PROJECT)}
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=folder, env=variables, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def labels_of(answers: list[dict[str, Any]]) -> list[int]:
    """What each answer says it is."""
    outputs = [{output["name"]: output["data"] for output in answer["outputs"]} for answer in answers]
    return [int(np.array(output["label"]).item()) for output in outputs]


async def test_pictures_of_digits_are_read_right(topics: Settings, processes: ProcessGroup, tmp_path: Path) -> None:
    """Scans of dark ink on white paper, PNG and JPEG, enlarged: read as the numbers they were made of, and right."""
    digits = load_digits()
    rows, expected = digits.data[:COUNT].astype(np.float32), digits.target[:COUNT].tolist()
    np.save(tmp_path / "rows.npy", rows)
    for number, row in enumerate(rows):
        form, options = ("JPEG", {"quality": 90}) if number % 2 else ("PNG", {})
        (tmp_path / f"{number:03}.{form.lower()}").write_bytes(encoded(ink_on_paper(row), form, **options))
    await processes.start("worker", topics)
    of_numbers = await submitted(tmp_path, topics, "rows.npy", "--input", "image")
    of_pictures = await submitted(tmp_path, topics, "[0-9]*.*", "--invert", "--scale", "16/255")
    assert [answer["file"][:3] for answer in of_pictures] == [f"{number:03}" for number in range(COUNT)]
    assert labels_of(of_pictures) == labels_of(of_numbers)
    right = sum(label == digit for label, digit in zip(labels_of(of_pictures), expected, strict=True))
    assert right >= RIGHT_MIN

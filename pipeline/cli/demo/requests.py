"""What the demo asks: handwritten digits with their true labels, and sentences. A third of all comes twice."""

from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

DIGITS_DISTINCT = 200
DIGITS_REPEATED = 100
SENTENCES_REPEATED = 20
# The same requests in the same order every time.
_SEED = 7

SENTENCES = (
    "A cat sleeps on the warm windowsill.",
    "The kitten naps in the sun by the window.",
    "The stock market fell sharply on Monday.",
    "Shares dropped steeply at the start of the week.",
    "She plays the violin in the city orchestra.",
    "He is a cellist with the philharmonic.",
    "Heavy rain flooded the streets of the old town.",
    "After the storm the roads were under water.",
    "Bake the bread for forty minutes until golden.",
    "Leave the loaf in the oven until it is brown.",
    "The rocket reached orbit after nine minutes.",
    "The spacecraft is now circling the Earth.",
    "Our train to Lyon was two hours late.",
    "The railway journey was badly delayed.",
    "The doctor advised him to stop smoking.",
    "His physician told him to give up cigarettes.",
    "Children are building a sandcastle on the beach.",
    "Kids play in the sand by the sea.",
    "The library closes at eight in the evening.",
    "You can borrow books until eight o'clock.",
    "The new phone has a much better camera.",
    "Photos from this handset look far sharper.",
    "Bees are dying because of pesticides.",
    "Farm chemicals are killing pollinating insects.",
    "The goalkeeper saved the penalty in the last minute.",
    "A late spot kick was stopped by the keeper.",
    "The museum shows paintings from the Baroque.",
    "An exhibition of seventeenth-century art opened.",
    "Water the tomatoes every morning in summer.",
    "In hot weather the vegetable garden needs water daily.",
    "The court sentenced the thief to two years.",
    "The burglar was sent to prison.",
    "Kafka keeps records in partitioned logs.",
    "A distributed log stores events in order.",
    "Glaciers in the Alps are melting faster.",
    "Mountain ice is disappearing as the climate warms.",
    "She ordered a coffee and a slice of cake.",
    "He had an espresso with some pastry.",
    "The bridge was closed for repairs.",
    "Workers are mending the river crossing.",
)


@dataclass(frozen=True, slots=True, eq=False)
class DemoRequest:
    """One request of the demo.

    Attributes:
        model_name: the model.
        inputs: for the client.
        subject: which distinct question it is; a repetition has its first one's.
        repeated: whether the same was asked before.
        label: the digit a person saw; None for a sentence.
    """

    model_name: str
    inputs: dict[str, npt.NDArray[Any]]
    subject: int
    repeated: bool = False
    label: int | None = None


def digit_requests() -> list[DemoRequest]:
    """Rows of scikit-learn's handwritten digits that no version of the model was trained on."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # The split of model_repository/digits/build.py: the rows it keeps for testing.
    _, images, _, labels = train_test_split(
        digits.data.astype(np.float32), digits.target, test_size=0.3, random_state=0, stratify=digits.target
    )
    distinct = [
        DemoRequest("digits", {"image": images[row : row + 1]}, row, label=int(labels[row]))
        for row in range(DIGITS_DISTINCT)
    ]
    return with_repetitions(distinct, DIGITS_REPEATED)


def sentence_requests() -> list[DemoRequest]:
    """Sentences in pairs of like meaning."""
    distinct = [
        DemoRequest("sentences", {"text": np.array([[text.encode()]], dtype=object)}, row)
        for row, text in enumerate(SENTENCES)
    ]
    return with_repetitions(distinct, SENTENCES_REPEATED)


def with_repetitions(distinct: list[DemoRequest], count: int) -> list[DemoRequest]:
    """The requests in their order, and `count` of them a second time somewhere in the second half."""
    rng = Random(_SEED)
    again = [
        DemoRequest(first.model_name, first.inputs, first.subject, repeated=True, label=first.label)
        for first in rng.sample(distinct[: len(distinct) // 2 + count // 2], count)
    ]
    half = len(distinct) // 2
    later = distinct[half:] + again
    rng.shuffle(later)
    # A shuffle may put a repetition before its first: exactly one of two equal ones is the repetition.
    seen: set[int] = set()
    ordered = []
    for request in distinct[:half] + later:
        repeated = request.subject in seen
        seen.add(request.subject)
        ordered.append(
            DemoRequest(request.model_name, request.inputs, request.subject, repeated=repeated, label=request.label)
        )
    return ordered

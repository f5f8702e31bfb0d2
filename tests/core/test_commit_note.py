"""What a commit says beside its offset: it comes back as it was written, and nothing else is taken for it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.commit_note import CommitNote, read_note
from tests.schemas.records import FAST

OFFSETS = st.integers(min_value=0, max_value=(1 << 63) - 1)
NOTES = st.builds(
    CommitNote,
    results_from=OFFSETS,
    delivered_until=OFFSETS,
    generation=OFFSETS,
    incarnation=OFFSETS,
    starts=OFFSETS,
    isolate_until=OFFSETS,
    suspect=st.integers(min_value=-1, max_value=(1 << 63) - 1),
    suspect_starts=OFFSETS,
)


@given(NOTES)
@FAST
def test_note_comes_back_as_it_was(note: CommitNote) -> None:
    """Whatever a worker notes, the next one reads; and Kafka's 4,096 bytes are never near."""
    text = note.encode()
    assert read_note(text) == note
    assert len(text) < 400


def test_note_says_only_what_there_is() -> None:
    """A worker that works well commits a few bytes."""
    assert CommitNote(results_from=7, generation=3).encode() == '{"results":7,"generation":3}'


def test_older_note_is_read() -> None:
    """A note of a worker that knew fewer members, or more, is a note."""
    assert read_note('{"results":7,"later":[1]}') == CommitNote(results_from=7)


@pytest.mark.parametrize(
    "metadata",
    [
        "", " ", "null", "7", "[]", "{}", "hello", '"text"', '{"results":null}', '{"results":"7"}', '{"results":-1}',
        '{"results":1.5}', '{"results":1e99}', '{"results":9223372036854775808}', '{"results":1,"starts":-1}',
        '{"results":1,"suspect":-2}', '{"results":1,"isolate_until":-1}', '{"results":1,"generation":true}',
        '{"results":1', "\ud800", "[" * 4096,
    ],
)  # fmt: skip
def test_foreign_metadata_says_nothing(metadata: str) -> None:
    """Whoever commits by hand, or with other software, leaves no note of ours, and no error."""
    assert read_note(metadata) is None


@given(
    st.text(max_size=200) | st.dictionaries(st.text(max_size=12), st.integers() | st.text(), max_size=4).map(json.dumps)
)
@FAST
def test_no_metadata_is_an_error(metadata: str) -> None:
    """Any text at all is read: as a note whose numbers are counts, or as none."""
    note = read_note(metadata)
    assert note is None or min(note.results_from, note.starts, note.generation, note.suspect + 1) >= 0

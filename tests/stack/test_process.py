"""The restart pause, and what is read from a log."""

from pathlib import Path

from pipeline.stack.process import LogTail, RestartPause, RestartPolicy, describe_exit, find_cause


def test_pause_doubles_to_its_limit() -> None:
    """Deaths in a row wait 0.5 s, then twice as long each, at most 30 s."""
    pause = RestartPause(RestartPolicy(), clock=lambda: 0.0)
    assert [pause.on_exit() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_pause_starts_over_after_a_healthy_minute() -> None:
    """60 s of readiness forgive earlier deaths; 59 s do not."""
    now = 0.0
    pause = RestartPause(RestartPolicy(), clock=lambda: now)
    pause.on_exit()
    pause.on_ready()
    now = 59.0
    assert pause.on_exit() == 1.0
    pause.on_ready()
    now += 60.0
    assert pause.on_exit() == 0.5


def test_tail_gives_whole_new_lines_only(tmp_path: Path) -> None:
    """Lines from before, and a line without its end, are not given."""
    path = tmp_path / "part.log"
    path.write_text("old\n")
    tail = LogTail(path)
    with path.open("a") as log:
        log.write("one\ntw")
        log.flush()
        assert tail.read_lines() == ["one"]
        log.write("o\n")
    assert tail.read_lines() == ["two"]


def test_cause_is_the_last_line_that_names_an_error() -> None:
    """Stack frames and chatter after the error do not hide it."""
    lines = ["starting", "java.net.BindException: Address already in use", "\tat sun.nio.ch.Net.bind", "bye"]
    assert find_cause(lines) == "java.net.BindException: Address already in use"
    assert find_cause([]) == "no output"
    assert describe_exit(-9) == "killed by SIGKILL"

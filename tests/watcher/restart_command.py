"""A restart command of the tests': ends one Triton of a stack, and notes which."""

import sys
from pathlib import Path

from pipeline.stack.restart import end_triton


def main() -> None:
    """`python -m tests.watcher.restart_command DATA_DIR ADDRESS INSTANCE`."""
    data_dir, address, instance = sys.argv[1:]
    end_triton(Path(data_dir), address)
    with (Path(data_dir) / "restarts.log").open("a", encoding="utf-8") as log:
        log.write(f"{instance}\n")


if __name__ == "__main__":
    main()

"""The generated documents: JSON Schemas and an AsyncAPI 3.0 document.

    python -m schemas.documents docs

writes `docs/schemas/*.json` and `docs/asyncapi.json`. The text is the same for the same models, so a stale document
shows in a test.
"""

import json
import sys
from pathlib import Path

from schemas.asyncapi import asyncapi_document
from schemas.json_schemas import json_schemas


def rendered() -> dict[str, str]:
    """Every document's text, by its path below the folder of documents."""
    documents = {f"schemas/{name}.json": schema for name, schema in json_schemas().items()}
    documents["asyncapi.json"] = asyncapi_document()
    return {path: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for path, document in documents.items()}


def write_documents(folder: Path) -> list[Path]:
    """Writes every document below `folder`; returns their paths.

    Raises:
        OSError: a file cannot be written.
    """
    written: list[Path] = []
    for path, text in rendered().items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        written.append(target)
    return written


def main(arguments: list[str]) -> int:
    """`python -m schemas.documents FOLDER`: 0 done, 2 wrong usage."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m schemas.documents FOLDER    for example: python -m schemas.documents docs\n")
        return 2
    for path in write_documents(Path(arguments[0])):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

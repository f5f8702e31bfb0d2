"""Names in a model repository: what is no part of it, what is not complete yet, and what no server should see. Pure."""

import re
import unicodedata
from typing import Literal

from pipeline.watcher.repository.manifest import MANIFEST_NAME
from pipeline.watcher.repository.model_folder import BUILD_NAME, CONFIG_NAME, SAMPLE_NAME

_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
# By Unicode: a version folder named with other digits than ASCII's would be taken for a folder of shared files.
_LIKE_A_VERSION = re.compile(r"[vV]?[-+]?\d[\d._]*")
_LIKE_THE_CONFIG = re.compile(r"(model[._-])?config\.(pb|pbtx|pbtxt|prototxt|textproto)(\.txt)?")
# Names that copying programs give to what is not complete yet; the last is rsync's, and Python's tempfile's.
_TEMPORARY = re.compile(
    r".*(~|\.(tmp|temp|part|partial|crdownload|filepart|swp))|\.tmp.*|\..+\.[A-Za-z0-9_]{6,8}", re.IGNORECASE
)
_HIDDEN = re.compile(r"\..*|__pycache__|.*\.pyc")
# Beside the version folders only; `configs` is for `--model-config-name`, and the serving copy has one configuration.
_NOTES = re.compile(rf"(README|LICENSE|NOTICE).*|.*\.md|configs|{re.escape(BUILD_NAME)}|{re.escape(SAMPLE_NAME)}")

Kind = Literal["version", "ignored", "shared"]


def is_temporary(name: str) -> bool:
    """Whether a name says that its content is not complete yet."""
    return _TEMPORARY.fullmatch(name) is not None


def is_hidden(name: str) -> bool:
    """Whether a name never reaches a server, wherever it is."""
    return _HIDDEN.fullmatch(name) is not None


def is_version(name: str) -> bool:
    """Whether a name is a version: a positive integer that fits 64 bits, without leading zeros."""
    return _VERSION.fullmatch(name) is not None


def is_left_out(name: str) -> bool:
    """Whether an entry beside the version folders is for people, or not complete: no server sees it."""
    return name == CONFIG_NAME or is_temporary(name) or is_hidden(name) or _NOTES.fullmatch(name) is not None


def is_left_out_of_version(name: str) -> bool:
    """Whether an entry of a version folder never reaches a server; temporary names are faults there, and stay."""
    return name == MANIFEST_NAME or (is_hidden(name) and not is_temporary(name))


def model_name_fault(name: str) -> str | None:
    """What is wrong with a model's name. They go into paths, record keys and addresses, so they are plain ASCII."""
    if _MODEL_NAME.fullmatch(name):
        return None
    return f"{name!a:.80}: a model's name has letters, digits, '.', '_' and '-', not '-' or '.' first, at most 255"


def beside_versions_fault(name: str) -> str | None:
    """What is wrong with an entry beside the version folders that looks like something it is not."""
    plain = unicodedata.normalize("NFKC", name).strip()
    if _LIKE_A_VERSION.fullmatch(plain):
        return "version folders are positive integers without leading zeros, in ASCII digits"
    if _LIKE_THE_CONFIG.fullmatch(plain.casefold()):
        return f"the configuration is read from {CONFIG_NAME} alone"
    return None


def file_name_fault(name: str) -> str | None:
    """What is wrong with the name of a file or folder that a server would open.

    Letters of any script are good. Refused are names that are read as others than they are: by a terminal, a log, a
    command line, another system's file names, or the eye.
    """
    if any(0xDC80 <= ord(letter) <= 0xDCFF for letter in name):
        return f"{name!a:.80}: the name is not UTF-8"
    if any(unicodedata.category(letter) in ("Cc", "Cf", "Zl", "Zp", "Co", "Cn") for letter in name):
        return f"{name!a:.80}: the name has characters that cannot be seen"
    if name.startswith("-"):
        return f"{name!a:.80}: the name begins with a dash, as an option does"
    if name != name.strip() or "\\" in name:
        return f"{name!a:.80}: the name has a backslash, or space around it"
    if name != unicodedata.normalize("NFC", name):
        return f"{name!a:.80}: the name has a second spelling in Unicode (it is not NFC)"
    return None

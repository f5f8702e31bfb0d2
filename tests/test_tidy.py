"""The house rules, as tests: layers, sizes, names, docstrings, and what no module may do."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
# A module that only holds generated documents' texts is a table, not code to read.
LONG_MODULES: dict[str, int] = {}
BANNED_MODULES = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc", "impl"}

# The import order. A package may import what stands above it; adapters besides only what is said below.
LAYERS = [
    {"schemas"},
    {"pipeline.errors", "pipeline.config", "pipeline.trace_variables", "pipeline.metrics", "pipeline.outage"},
    {"pipeline.core"},
    {"pipeline.ports"},
    {"pipeline.dispatcher", "pipeline.cache_levels", "pipeline.adapters"},
    {"pipeline.flights"},
    {"pipeline.engine"},
    {"pipeline.worker", "pipeline.sink", "pipeline.watcher", "pipeline.client", "pipeline.stack"},
    {"pipeline.gateway", "pipeline.webhooks"},
    {"pipeline.bench"},
    {"pipeline.cli"},
]
# Every adapter makes its Kafka clients in one place, and its Redis clients in another.
SHARED_ADAPTERS = {
    "pipeline.adapters.kafka",
    "pipeline.adapters.compacted_topic",
    "pipeline.adapters.redis_connection",
    "pipeline.adapters.triton_channel",
}
# The core computes. Types and pure conversions of these modules are no I/O and no clock.
CORE_MODULES = {"asyncio", "os", "time", "socket", "threading", "subprocess", "random", "uuid", "secrets", "pathlib"}
CORE_ALLOWED = {("time", "gmtime"), ("time", "strftime"), ("random", "Random"), ("uuid", "UUID")}
TRITON_ADAPTERS = tuple(f"pipeline/adapters/{name}.py" for name in ("triton", "triton_channel", "triton_metadata"))
ONLY_IN = {
    "faust": ("pipeline/worker/",),
    "mode": ("pipeline/worker/",),
    # The benchmarks' yardsticks are raw loops on the libraries themselves.
    "grpc": (*TRITON_ADAPTERS, "pipeline/watcher/", "pipeline/bench/"),
    # The protobuf messages of model configurations are data; the core reads them.
    "tritonclient": (*TRITON_ADAPTERS, "pipeline/watcher/", "pipeline/core/", "pipeline/bench/"),
    "clickhouse_connect": ("pipeline/adapters/clickhouse.py",),
    "fastapi": ("pipeline/gateway/", "pipeline/bench/"),
    "starlette": ("pipeline/gateway/",),
    "uvicorn": ("pipeline/gateway/", "pipeline/bench/"),
    "PIL": ("pipeline/cli/pictures.py",),
    "opentelemetry": ("pipeline/adapters/tracing.py",),
    # `pipeline status` asks for a PONG.
    "redis": ("pipeline/adapters/redis", "pipeline/bench/"),
}


def files(*folders: str) -> list[Path]:
    """The Python files of these folders."""
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(ROOT).parts)
    )


def name_of(path: Path) -> str:
    """A file as the failure names it."""
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """A file's module."""
    return name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    """A file, parsed."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path, *, lazily: bool = True) -> Iterator[tuple[int, str, str]]:
    """Line, module and name of each import; of modules, the name is empty. Lazy ones are inside functions."""
    tree = tree_of(path)
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if id(node) in lazy and not lazily:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, node.module or "", alias.name


def layer_of(module: str) -> int | None:
    """The index of a module's layer; None for what is no part of them (the package itself, others' packages)."""
    for index, layer in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in layer):
            return index
    return None


def functions_of(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a file."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def promises_of(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The tests of a file: functions of the module or of its classes, not what is defined inside of them."""
    nodes: list[ast.stmt] = list(tree_of(path).body)
    for node in list(nodes):
        if isinstance(node, ast.ClassDef):
            nodes += node.body
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node


SOURCES = files("pipeline", "schemas")
ALL = files("pipeline", "schemas", "tests")


def test_modules_import_only_from_above() -> None:
    """The listing is the import order: no module knows one of a later layer."""
    broken = []
    for path in SOURCES:
        own = layer_of(module_of(path))
        for line, module, name in imports_of(path):
            other = layer_of(f"{module}.{name}" if name else module)
            if own is not None and other is not None and other > own:
                broken.append(f"{name_of(path)}:{line} imports {module} from a later layer")
    assert broken == []


def test_every_module_has_its_layer() -> None:
    """A new folder or module is given a place in the order."""
    known = {"pipeline", "pipeline.__main__"}
    modules = [module_of(path) for path in SOURCES]
    assert [module for module in modules if layer_of(module) is None and module not in known] == []


def test_entry_points_do_not_know_each_other() -> None:
    """Worker, sink, watcher, client and stack are processes of their own: they meet in topics alone."""
    entries = {"worker", "sink", "watcher", "client"}
    broken = []
    for path in SOURCES:
        parts = module_of(path).split(".")
        own = parts[1] if len(parts) > 1 else ""
        for line, module, _ in imports_of(path):
            other = module.split(".")[1] if module.startswith("pipeline.") else ""
            if own in entries and other in entries and own != other:
                broken.append(f"{name_of(path)}:{line} imports {module}")
    assert broken == []


def test_adapters_do_not_know_each_other() -> None:
    """An adapter speaks to one outside system; only making Kafka clients is shared, and none knows the engine."""
    broken = []
    for path in files("pipeline/adapters"):
        for line, module, name in imports_of(path):
            imported = f"{module}.{name}" if module == "pipeline.adapters" else module
            if imported.startswith("pipeline.adapters.") and imported not in SHARED_ADAPTERS | {module_of(path)}:
                broken.append(f"{name_of(path)}:{line} imports {imported}")
            if imported in {"pipeline.engine", "pipeline.dispatcher"}:
                broken.append(f"{name_of(path)}:{line} imports {imported}")
    assert broken == []


def test_core_only_computes_values() -> None:
    """The core has no event loop, no I/O, no clock, and no randomness but what it is given."""
    broken = []
    for path in files("pipeline/core"):
        for line, module, name in imports_of(path):
            if module.partition(".")[0] not in CORE_MODULES or (module, name) in CORE_ALLOWED:
                continue
            if module == "random" and name == "" and not _uses_beyond(path, "random", {"Random"}):
                continue  # as a type: `random.Random` is handed in
            broken.append(f"{name_of(path)}:{line} imports {module} {name}".rstrip())
        broken += [
            f"{name_of(path)}:{node.lineno} opens a file"
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"open", "input"}
        ]
    assert broken == []


def _uses_beyond(path: Path, module: str, allowed: set[str]) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == module
        and node.attr not in allowed
        for node in ast.walk(tree_of(path))
    )


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_libraries_stay_in_their_place(library: str) -> None:
    """Each outside system's library is known in one place, so that it can be replaced there."""
    broken = [
        f"{name_of(path)}:{line} imports {module}"
        for path in SOURCES
        for line, module, _ in imports_of(path)
        if module.partition(".")[0] == library and not name_of(path).startswith(ONLY_IN[library])
    ]
    assert broken == []


def test_modules_are_short_enough_to_read() -> None:
    """No module has more than 400 lines."""
    found = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in found.items() if lines > LONG_MODULES.get(name, MODULE_LINES_MAX)} == {}


def test_functions_are_short_enough_to_read() -> None:
    """No function has more than 70 lines, its docstring included."""
    broken = [
        f"{name_of(path)}:{function.lineno} {function.name} has {lines} lines"
        for path in ALL
        for function in functions_of(path)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert broken == []


def test_module_names_say_what_is_inside() -> None:
    """No drawer for odds and ends."""
    assert [name_of(path) for path in ALL if path.stem in BANNED_MODULES or path.parent.name in BANNED_MODULES] == []


def test_public_names_have_docstrings() -> None:
    """Every module, public class and public function says what it is for."""
    broken = []
    for path in ALL:
        if ast.get_docstring(tree_of(path)) is None:
            broken.append(f"{name_of(path)} has no docstring")
        if name_of(path).startswith("tests/"):
            continue
        broken += [
            f"{name_of(path)}:{node.lineno} {node.name} has no docstring"
            for node in _public(tree_of(path))
            if ast.get_docstring(node) is None
        ]
    assert broken == []


def _public(tree: ast.Module | ast.ClassDef) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        yield node
        if isinstance(node, ast.ClassDef):
            yield from _public(node)


def test_every_test_states_its_promise() -> None:
    """Every test says in a sentence what it promises."""
    broken = [
        f"{name_of(path)}:{test.lineno} {test.name}"
        for path in files("tests")
        for test in promises_of(path)
        if not (ast.get_docstring(test) or "").partition("\n")[0].rstrip().endswith((".", ":", "?"))
    ]
    assert broken == []


def test_tests_do_not_sleep_for_luck() -> None:
    """Real time is slept on only between two looks at a condition: inside a loop, never in a line of a test."""
    broken = []
    for path in files("tests"):
        # The echo model is a server's, not a test's: being slow is what it is for.
        if "tests/models/echo/" in name_of(path):
            continue
        looking = {
            id(node)
            for loop in ast.walk(tree_of(path))
            if isinstance(loop, ast.While | ast.For)
            for node in ast.walk(loop)
        }
        broken += [
            f"{name_of(path)}:{node.lineno} time.sleep"
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep" and id(node) not in looking
        ]
    assert broken == []


def test_nothing_is_left_for_later() -> None:
    """No note to oneself in the code: what is to be done is done or is an issue."""
    words = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
    broken = [
        f"{name_of(path)}:{number} {line.strip()}"
        for path in ALL
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if words.search(line)
    ]
    assert broken == []


def test_no_error_is_swallowed() -> None:
    """No bare `except`, and none for every error that then does nothing."""
    broken = []
    for path in ALL:
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            everything = isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}
            idle = all(isinstance(statement, ast.Pass) for statement in node.body)
            if node.type is None or (everything and idle):
                broken.append(f"{name_of(path)}:{node.lineno}")
    assert broken == []


def test_environment_is_read_by_entry_points() -> None:
    """Only the settings and the programs themselves look at the environment."""
    allowed = ("pipeline/config.py", "pipeline/cli/", "pipeline/stack/", "pipeline/worker/main.py", "pipeline/bench/")
    broken = [
        f"{name_of(path)}:{node.lineno}"
        for path in SOURCES
        if not name_of(path).startswith(allowed)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    ]
    assert broken == []

"""The architecture, held by the import statements of every module."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "edgeft"

# From the bottom to the top; a module imports only from layers below its own.
LAYERS = (
    ("errors",),
    ("resources", "extras", "schema", "lock", "files", "documents", "user_code"),
    ("preprocessing",),
    ("types",),
    ("recipe", "target", "calibration"),
    ("data", "models", "training", "pruning", "quantization", "exporters", "compilers", "runtimes"),
    ("measure",),
    ("package", "reporting", "gating", "inspection", "diagnosis"),
    ("benchmarking",),
    ("workspace", "records"),
    ("stages",),
    ("pipeline",),
    ("__init__",),
    ("cli", "pytest_plugin"),
    ("__main__",),
)
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}
# What travels alone to a device or into a worker process imports nothing of edgeft.
STANDALONE = "device"
WITHOUT_TORCH = (
    "data",
    "compilers",
    "runtimes",
    "measure",
    "package",
    "reporting",
    "gating",
    "inspection",
    "diagnosis",
    "benchmarking",
    "workspace",
    "target",
    "recipe",
)
WITH_TORCH = {"models", "training", "pruning", "quantization", "exporters", "pipeline", "stages"}
HEAVY = {
    "torch", "torchao", "torchvision", "lightning", "torchmetrics", "timm", "sklearn", "safetensors",
    "torch_pruning", "litert_torch", "onnxscript", "tokenizers", "transformers", "h5py",
    "onnx2torch", "keras",
}  # fmt: skip


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """Return the dotted module that a (possibly relative) from-import names."""
    if not node.level:
        return node.module or ""
    package = ["edgeft", *path.relative_to(PACKAGE).parts[:-1]]
    return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])


def imports_of(path: Path, nodes: Iterator[ast.AST]) -> set[str]:
    """Return dotted names of everything that the import statements among `nodes` reach."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, path)
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "edgeft" else {module}
    return found


def at_import_time(path: Path) -> set[str]:
    """Return what a module imports as it is imported: nothing in functions or for type checkers only."""

    def walk(nodes: list[ast.stmt]) -> Iterator[ast.AST]:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                yield from walk(node.orelse)
                continue
            yield node
            for field in ("body", "orelse", "finalbody"):
                yield from walk(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from walk(handler.body)

    return imports_of(path, walk(tree_of(path).body))


def names_used_of_the_package(path: Path) -> set[str]:
    """Return the NAMEs of every ``edgeft.NAME`` in a module's code."""
    attributes = (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute))
    return {a.attr for a in attributes if isinstance(a.value, ast.Name) and a.value.id == "edgeft"}


def units(imports: set[str]) -> set[str]:
    """Return which units of edgeft are among dotted names; `edgeft.__version__` is `__init__`."""
    parts = [name.split(".") for name in imports if name == "edgeft" or name.startswith("edgeft.")]
    return {p[1] if len(p) > 1 and p[1] in {*RANK, STANDALONE} else "__init__" for p in parts}


def each(wanted: Callable[[Path], bool] = lambda path: True) -> pytest.MarkDecorator:
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if wanted(path)]
    return pytest.mark.parametrize("path", paths, ids=[str(path.relative_to(PACKAGE)) for path in paths])


@each()
def test_imports_point_downwards(path):
    unit = unit_of(path)
    reached = units(imports_of(path, ast.walk(tree_of(path)))) - {unit}
    if unit == STANDALONE:
        assert not reached, "runs on a device, where edgeft is not installed"
        return
    assert unit in RANK, f"{unit} has no place in the layers: give it one in this test and in the design"
    if unit == "__init__":
        assert "cli" not in reached
        return
    if names_used_of_the_package(path) <= {"__version__"}:
        reached -= {"__init__"}
    wrong = {other for other in reached if RANK[other] >= RANK[unit]}
    assert not wrong, f"{unit} must not import {sorted(wrong)}"


@each(lambda path: unit_of(path) not in WITH_TORCH)
def test_torch_stays_where_it_belongs(path):
    heavy = {name.split(".")[0] for name in at_import_time(path)} & HEAVY
    assert not heavy, f"imported at module level: {sorted(heavy)}"


@each(lambda path: unit_of(path) not in ("cli", STANDALONE))
def test_only_the_command_line_prints(path):
    calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    prints = [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
    assert not prints, f"print in line {prints}"


@each(lambda path: path != PACKAGE / "cli" / "main.py")
def test_only_the_entry_point_catches_everything(path):
    broad = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {kind.id if isinstance(kind, ast.Name) else "" for kind in kinds if kind is not None}
            reraises = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            if node.type is None or "Exception" in names or ("BaseException" in names and not reraises):
                broad.append(node.lineno)
    assert not broad, f"catches everything in line {broad}"


@each()
def test_no_assert_validates(path):
    asserts = [node.lineno for node in ast.walk(tree_of(path)) if isinstance(node, ast.Assert)]
    assert not asserts, f"assert in line {asserts}: python -O drops it; raise an EdgeftError"


def test_the_rules_notice_a_violation(tmp_path):
    """The helpers above see relative, nested and conditional imports."""
    relative = "from ..cli import main\n"
    guarded = "if TYPE_CHECKING:\n    import torch\ntry:\n    import timm\nexcept ImportError:\n    pass\n"
    tree = ast.parse(relative + guarded)
    node = next(node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    assert absolute(node, PACKAGE / "data" / "x.py") == "edgeft.cli"
    file = tmp_path / "x.py"
    file.write_text(guarded)
    assert at_import_time(file) == {"timm"}
    assert units({"edgeft.cli.main", "edgeft", "numpy", "edgeft.__version__"}) == {"cli", "__init__"}


def import_times(*arguments: str) -> dict[str, float]:
    """Return the seconds that each module took by itself, by name, in a fresh interpreter."""
    command = [sys.executable, "-X", "importtime", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    rows = [line.split("|") for line in result.stderr.splitlines() if line.startswith("import time:")]
    return {name.strip(): int(own.split(":")[1]) / 1e6 for own, _, name in rows[1:]}


def test_import_edgeft_is_light():
    bare = import_times("-c", "pass")
    times = min(
        (import_times("-c", "import edgeft") for _ in range(3)), key=lambda times: sum(times.values())
    )
    extra_s = sum(seconds for name, seconds in times.items() if name not in bare)
    assert extra_s < 0.2, f"{extra_s:.3f} s"
    assert not HEAVY & set(times)
    assert "numpy" not in times


def test_measuring_and_gating_do_without_torch():
    """What a board or a CI job imports, in one process; the rule above does not see through two modules."""
    imports = ", ".join(f"edgeft.{unit}" for unit in WITHOUT_TORCH)
    code = f"import sys, {imports}; print(sorted({HEAVY!r} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("verb", ["--help", "run --help", "check --help", "targets", "clean --help"])
def test_these_verbs_do_without_torch(verb):
    imported = import_times("-m", "edgeft", *verb.split())
    assert "edgeft.cli.main" in imported
    assert not HEAVY & set(imported)

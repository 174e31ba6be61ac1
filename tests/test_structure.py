"""The shape of the package: imports that point one way, few dependencies, and documented public names."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sedq

pytestmark = pytest.mark.any_isa

ROOT = Path(sedq.__file__).parent
# from top to bottom: a module imports from its own layer or lower ones
LAYERS = (
    {"commands"},
    {"calibration", "faults"},
    {"models", "files", "datasets"},
    {"linear", "embedding"},
    {"detection", "quantization"},
    {"_sealed", "_fork", "_validation", "_config", "exceptions", "_info", "_progress", "_statistics"},
    {"_core"},
)
LAYER_OF = {name: depth for depth, names in enumerate(LAYERS) for name in names}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every Python module of the installed package, by its name below sedq, with its tree."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(p for p in parts if p != "__init__"), ast.parse(path.read_text(encoding="utf-8"))


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(node: ast.AST) -> Iterator[str]:
    """Dotted names that a tree imports when it runs; of `from a import b`, a.b."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import in line {child.lineno}"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif not is_for_type_checkers(child):
            yield from imports(child)


def arrows() -> Iterator[tuple[str, str]]:
    """(importing module, imported name) of all imports within sedq, both below sedq."""
    for module, tree in modules():
        for name in imports(tree):
            if name == "sedq" or name.startswith("sedq."):
                yield module, name.removeprefix("sedq").removeprefix(".")


def unit(name: str) -> str:
    return name.partition(".")[0]


def test_every_module_has_a_layer() -> None:
    assert {unit(module) for module, _ in modules()} - {""} == set(LAYER_OF)


def test_no_arrow_points_back() -> None:
    seen = [(module, name) for module, name in arrows() if module]
    assert len(seen) > 30
    # a name taken from sedq itself must be a module, not something that its __init__ imports
    assert [f"{m} imports {n} of the package" for m, n in seen if unit(n) not in LAYER_OF] == []
    assert [f"{m} imports {n}" for m, n in seen if LAYER_OF[unit(n)] < LAYER_OF[unit(m)]] == []


def test_no_cycle_of_modules() -> None:
    names = {module for module, _ in modules()}

    def module_of(name: str) -> str:
        while name and name not in names and not name.startswith("_core."):
            name = name.rpartition(".")[0]
        return name

    graph: dict[str, set[str]] = {name: set() for name in names}
    for module, name in arrows():
        target = module_of(name)
        # a package's __init__ gathers what its modules define
        if module and target != module and not target.startswith(f"{module}."):
            graph[module].add(target)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for following in graph.get(name, ()):
                visit(following, (*path, name))
            done.add(name)

    for name in names:
        visit(name, ())


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import sedq.commands._demo", ["sedq.commands._demo"]),
        ("def f():\n    from sedq import a, b", ["sedq.a", "sedq.b"]),
        ("try:\n    import a\nexcept ImportError:\n    import b", ["a", "b"]),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    pass", []),
        ("class A:\n    if x:\n        import a.b as c", ["a.b"]),
    ],
)
def test_imports_are_found_wherever_they_hide(source: str, found: list[str]) -> None:
    assert list(imports(ast.parse(source))) == found


def test_compiled_modules_import_nothing_of_sedq_outside_core() -> None:
    sources = sorted((ROOT / "_core").glob("*.pyx")) + sorted((ROOT / "_core").glob("*.p[xy][di]"))
    if not any(path.suffix == ".pyx" for path in sources):
        pytest.skip("the Cython sources are not installed")
    for path in sources:
        imported = re.findall(r"^\s*(?:from|import|cimport)\s+(sedq\S*)", path.read_text(encoding="utf-8"), re.M)
        assert [name for name in imported if not name.startswith("sedq._core")] == [], path.name


def test_only_faults_imports_the_hooked_kernels() -> None:
    users = {unit(module) for module, name in arrows() if "_faultkernels" in name}
    assert users == {"faults"}


KNOWN = {*sys.stdlib_module_names, "sedq", "numpy", "scipy"}
# packages of extras, and where they are used
OPTIONAL = {("matplotlib", "faults._pictures")}


def test_only_numpy_and_scipy_and_extras_where_they_are_used_are_named() -> None:
    named = {(unit(name), module) for module, tree in modules() for name in imports(tree)}
    assert {(name, module) for name, module in named if name not in KNOWN} == OPTIONAL


def test_extras_are_imported_inside_functions() -> None:
    for module, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node.body = []
        assert {unit(name) for name in imports(tree)} - KNOWN == set(), module


def python(script: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script, with a folder before all others on the path if one is given."""
    path = [] if folder is None else [f"import sys; sys.path.insert(0, {str(folder)!r})"]
    command = [sys.executable, "-P", "-W", "error", "-c", "\n".join([*path, script])]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_only_numpy_and_scipy_are_imported() -> None:
    # what scipy imports by itself, if it is there, is not ours
    ran = python(
        "import sys, numpy, scipy.special; before = set(sys.modules)\nimport sedq\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    assert ran.returncode == 0, ran.stderr
    imported = {name for name in ran.stdout.split() if not name.startswith(("_cython_", "_cyutility"))}
    assert imported - set(sys.stdlib_module_names) - {"numpy", "scipy"} == {"sedq"}


def test_import_sedq_does_not_import_scipy() -> None:
    # SciPy takes several times as long to import as sedq itself, and many programs never need it
    ran = python("import sys, sedq\nprint(*sorted(name for name in sys.modules if name.partition('.')[0] == 'scipy'))")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == []


@pytest.mark.parametrize("name", [*sedq._SUBPACKAGES, *sedq._SUBPACKAGE_OF])  # type: ignore[attr-defined]
def test_what_is_imported_when_it_is_used_is_there(name: str) -> None:
    ran = python(f"import sys, sedq\nassert {name!r} in dir(sedq)\nassert {name!r} not in vars(sedq)\nprint(sedq.{name})")
    assert ran.returncode == 0, ran.stderr
    assert name in ran.stdout


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'sedq' has no attribute 'no_such_name'"):
        sedq.no_such_name  # type: ignore[attr-defined] # noqa: B018


def test_a_source_tree_without_compiled_modules_says_that_it_hides_the_installed_package(tmp_path: Path) -> None:
    compiled = shutil.ignore_patterns("*.so", "*.pyd", "*.dylib", "__pycache__", "*.npz")
    shutil.copytree(ROOT, tmp_path / "sedq", ignore=compiled)
    ran = python("import sedq", tmp_path)
    assert ran.returncode == 1
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "hides the installed package" in last
    assert "If you ran 'pip install .', start Python in another directory" in last


# ---- documentation of public names

PUBLIC: dict[str, Any] = {f"sedq.{name}": getattr(sedq, name, None) for name in sedq.__all__ if name != "__version__"}
for package in (sedq.datasets, sedq.faults, sedq.files):
    PUBLIC |= {f"{package.__name__}.{name}": getattr(package, name) for name in package.__all__}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isroutine(value)}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
# entry points of models and kernels, not of users
INTERNAL = {
    "PackedWeights.epilogue",
    "PackedWeights.heal_in_call",
    "PackedWeights.healed_since",
    "PackedWeights.integer_epilogue",
    "PackedWeights.require_intact",
    "QuantizedLinear.run",
}
METHODS = {
    f"{name}.{attribute}": getattr(owner, attribute)
    for name, owner in CLASSES.items()
    for base in owner.__mro__
    if base.__module__.startswith("sedq.")
    for attribute, value in vars(base).items()
    if (not attribute.startswith("_") or attribute == "__call__")
    and (inspect.isfunction(value) or isinstance(value, (classmethod, staticmethod)))
    and f"{name.removeprefix('sedq.')}.{attribute}" not in INTERNAL
}


def section(documented: Any, title: str) -> str:
    """Text of a numpydoc section; empty without one."""
    text = inspect.getdoc(documented) or ""
    match = re.search(rf"^{title}\n-{{{len(title)}}}\n(.*?)(?=^\w[\w ]*\n---|\Z)", text, re.M | re.S)
    return match[1] if match else ""


def parameters(call: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(call).parameters if name not in ("self", "cls")]


def test_every_public_name_exists_once() -> None:
    assert len(set(sedq.__all__)) == len(sedq.__all__)  # the linter sorts them
    assert [name for name in sedq.__all__ if not hasattr(sedq, name)] == []


def test_the_version_is_that_of_the_build() -> None:
    build = (Path(__file__).parent.parent / "meson.build").read_text(encoding="utf-8")
    assert re.findall(r"^  version: '(.*)',$", build, re.M) == [sedq.__version__]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name: str) -> None:
    doc = inspect.getdoc(PUBLIC[name]) or ""
    summary = doc.partition("\n")[0]
    assert summary.endswith(".")
    assert not summary.startswith(f"{name.rpartition('.')[2]}(")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_numpydoc_sections(name: str) -> None:
    function = FUNCTIONS[name]
    described = section(function, "Parameters")
    missing = [p for p in parameters(function) if not re.search(rf"^[\w, ]*\b{p}\b.*$", described, re.M)]
    assert missing == []
    returns = inspect.signature(function).return_annotation
    if returns not in (None, "None", "Iterator[None]"):
        assert section(function, "Yields" if "Iterator" in str(returns) else "Returns") or not parameters(function)
    for title in ("Parameters", "Returns", "Raises", "Yields"):
        assert (f"\n{title}\n" in (inspect.getdoc(function) or "")) == bool(section(function, title))


@pytest.mark.parametrize("name", CLASSES)
def test_classes_describe_their_parameters_or_attributes(name: str) -> None:
    described = section(CLASSES[name], "Parameters") + section(CLASSES[name], "Attributes")
    assert described or issubclass(CLASSES[name], (Warning, ValueError, RuntimeError))
    if section(CLASSES[name], "Parameters"):
        missing = [p for p in parameters(CLASSES[name]) if not re.search(rf"\b{p}\b", described)]
        assert missing == []


@pytest.mark.parametrize("name", METHODS)
def test_methods_name_their_parameters(name: str) -> None:
    doc = inspect.getdoc(METHODS[name]) or ""
    assert doc.partition("\n")[0].rstrip().endswith((".", ":"))
    missing = [p for p in parameters(METHODS[name]) if not re.search(rf"\b{p}\b", doc)]
    assert missing == [] or "Arguments as for" in doc

"""The sdist and the wheel hold the same modules: what is in the tree is in both, and what is compiled is in the wheel.

Builds both with the backend itself, the wheel from the unpacked sdist as pip does it, without a network. This takes as
long as a build. If the environment variable SEDQ_DISTRIBUTIONS names a folder with one sdist and the wheel that was built
from it, those two are compared instead.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest

pytestmark = pytest.mark.any_isa

ROOT = Path(__file__).parent.parent
# what the wheel leaves out: the build's own files, and kernels, which only a build needs
BUILD_FILES = {"meson.build"}
KERNELS = "sedq/_core/kernels/"


def folders_of(*commands: str) -> list[str]:
    """Where the distributions of these names installed commands of theirs, perhaps in another environment than this one."""
    files = [file for name in commands for file in metadata.files(name) or [] if file.name == name]
    return [str(Path(str(file.locate())).resolve().parent) for file in files]


def backend(call: str, source: Path) -> None:
    """Call a hook of the build backend in a source tree."""
    path = [*folders_of("meson", "ninja", "cython"), os.environ.get("PATH", "")]
    ran = subprocess.run(
        [sys.executable, "-P", "-c", f"import mesonpy; mesonpy.{call}"],
        cwd=source,
        env={**os.environ, "PATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, f"{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}"


def unpacked(sdist: Path, folder: Path) -> Path:
    """Unpack an sdist and return the folder of its source tree."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    return source


def files_of(source: Path) -> set[str]:
    """Files of the package in a source tree."""
    return {p.relative_to(source).as_posix() for p in (source / "sedq").rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """Files of the package in the sdist, and in a wheel built from it."""
    folder = tmp_path_factory.mktemp("distributions")
    if built := os.environ.get("SEDQ_DISTRIBUTIONS"):
        (sdist,), (wheel,) = Path(built).glob("*.tar.gz"), Path(built).glob("*.whl")
        return files_of(unpacked(sdist, folder)), set(zipfile.ZipFile(wheel).namelist())
    for module, package in (("mesonpy", "meson-python"), ("Cython", "Cython"), ("mesonbuild", "meson"), ("ninja", "ninja")):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{package} is not installed, which the build needs: pip install meson-python Cython meson ninja")
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout, of which alone the backend makes an sdist")
    backend(f"build_sdist({str(folder)!r}, {{'builddir': {str(folder / 'meta')!r}}})", ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    source = unpacked(sdist, folder)
    # what is compiled need not be fast here
    settings = {"builddir": str(folder / "build"), "setup-args": ["-Dbuildtype=plain", "-Doptimization=0"]}
    backend(f"build_wheel({str(folder)!r}, {settings!r})", source)
    (wheel,) = folder.glob("*.whl")
    return files_of(source), set(zipfile.ZipFile(wheel).namelist())


def modules(files: set[str]) -> set[str]:
    """Dotted names of the modules, sources of compiled ones included."""
    named = {PurePosixPath(f) for f in files if f.startswith("sedq/")}
    return {".".join([*p.parts[:-1], p.name.partition(".")[0]]) for p in named if p.suffix in (".py", ".pyx", ".so", ".pyd")}


def test_both_hold_the_same_modules(distributions: tuple[set[str], set[str]]) -> None:
    sdist, wheel = distributions
    assert modules(sdist) == modules(wheel)
    assert {"sedq.linear._products", "sedq.faults._inject", "sedq._core._gemm"} <= modules(wheel)


def test_both_hold_the_same_files(distributions: tuple[set[str], set[str]]) -> None:
    sdist, wheel = distributions
    expected = {f for f in sdist if PurePosixPath(f).name not in BUILD_FILES and not f.startswith(KERNELS)}
    compiled = {f for f in wheel if PurePosixPath(f).suffix in (".so", ".pyd")}
    assert {f for f in wheel if f.startswith("sedq/")} - compiled == expected
    assert {f for f in wheel if not f.startswith(("sedq/", "sedq-"))} == set()
    assert {"sedq/py.typed", "sedq/_core/_gemm.pyi", "sedq/datasets/msweb.npz"} <= expected


def test_each_cython_source_is_compiled(distributions: tuple[set[str], set[str]]) -> None:
    sdist, wheel = distributions
    sources = {PurePosixPath(f).stem for f in sdist if f.endswith(".pyx")}
    assert sources == {PurePosixPath(f).name.partition(".")[0] for f in wheel if f.endswith((".so", ".pyd"))}
    assert "_dispatch" in sources


def test_the_tree_holds_nothing_else(distributions: tuple[set[str], set[str]]) -> None:
    ran = subprocess.run(["git", "ls-tree", "-r", "--name-only", "HEAD", "sedq"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert set(ran.stdout.split()) == distributions[0]

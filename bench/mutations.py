"""Mutation test of the detectors: ``python bench/mutations.py FOLDER [--only GLOB] [--list] [--limit N] [--again]``.

A mutation removes or weakens one comparison, one check sum or one call of the code that detects and recovers. The tests
must fail for each. A mutation that survives shows a missing test, or changes nothing: then `mutations.toml` says why.

::

    source file -> find mutations -> for each: write it into a copy of the tree, build, run the tests of that file
        tests fail         killed
        tests pass         survived, or equivalent if mutations.toml has a reason
        compiler fails     does not build
        too slow           timed out (counts as killed: the suite does not pass)

FOLDER holds the copy, its build and `log.jsonl`, one line per mutation; a run goes on from there. The builds need what
``pip install --no-build-isolation`` needs. All runs at the lowest priority, one job at a time.
"""

from __future__ import annotations

import argparse
import collections
import fnmatch
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import asdict
from pathlib import Path

import mutants
from mutants import Mutation

ROOT = Path(__file__).parent.parent
# which tests concern a file, nearest first: of the first pattern that matches
TESTS = {
    "sedq/detection/_recovery.py": "recovery second_look bad_operands linear_recovery embedding_recovery dlrm_faults",
    "sedq/linear/_products.py": "linear_recovery bad_operands shared_objects linear_floats recovery mod127 gemm_detection",
    "sedq/quantization/_qparams.py": "qparams reference linear",
    "sedq/linear/_layer.py": "kept_parameters linear linear_errors",
    "sedq/linear/checksums.py": "checks",
    "sedq/linear/_[hew]*": "weights at_rest bad_operands linear_recovery shared_objects mod127 scrub processes",
    "sedq/embedding/_bag.py": "embedding_recovery second_look shared_objects repair pruned calibration_drift",
    "sedq/embedding/_index_batch.py": "index_batch",
    "sedq/embedding/_guard.py": "guard updates processes",
    "sedq/embedding/_requests.py": "pruned embedding_arguments embedding calibration_use",
    "sedq/embedding/_formats.py": "embedding_formats embedding_formats_detection digests",
    "sedq/embedding/_parity.py": "parity parity_embedding parity_collection",
    "sedq/embedding/*": "repair embedding_recovery bad_operands scrub updates at_rest parity_embedding parity_collection",
    "sedq/_core/_gemm.pyx": "gemm_detection gemm_parameters mod127 fault_sites_products linear_recovery gemm linear",
    "sedq/_core/_dense.pyx": "dense second_way dlrm_faults linear_floats",
    "sedq/_core/_embedding.pyx": "embedding_detection second_way embedding_formats_detection fault_sites_tables embedding",
    "sedq/_core/_collection.pyx": "collection fault_sites_tables parity_collection",
    "sedq/_core/_rows.pyx": "digests repair embedding_formats embedding_detection scrub",
    "sedq/_core/_syndromes.pyx": "index_batch repair parity scrub",
    "sedq/_core/kernels/gemm*": "gemm_detection gemm_parameters mod127 fault_sites_products gemm",
    "sedq/_core/kernels/epilogue*": "gemm_detection gemm_parameters second_way fault_sites_products gemm linear",
    "sedq/_core/kernels/again*": "second_way embedding_formats_detection fault_sites_tables",
    "sedq/_core/kernels/dense*": "dense second_way dlrm_faults linear_floats",
    "sedq/_core/kernels/embedding*": "embedding_detection embedding_formats_detection fault_sites_tables digests embedding",
    "sedq/_core/kernels/scan*": "digests scrub",
    "sedq/_core/kernels/rows.h": "digests embedding_formats embedding_detection scrub",
}


def tests_of(path: str) -> list[str]:
    """Names of the files of tests that concern a source file, nearest first."""
    names = next((names.split() for pattern, names in TESTS.items() if fnmatch.fnmatch(path, pattern)), [])
    return [f"tests/test_{name}.py" for name in names]


class Workshop:
    """A copy of the tree, its build, and the package installed from it."""

    def __init__(self, folder: Path, timeout: float, jobs: int) -> None:
        self.tree, self.build, self.site = folder / "tree", folder / "build", folder / "site"
        self.timeout, self.jobs = timeout, jobs
        self.environment = {**os.environ, "PYTHONPATH": str(self.site)}
        self.stamp, self.killers = 0, collections.Counter[str]()
        left_out = shutil.ignore_patterns(".git", "__pycache__", ".hypothesis", ".asv", "_build", "*.so")
        shutil.rmtree(self.tree, ignore_errors=True)
        shutil.copytree(ROOT, self.tree, ignore=left_out)  # keeps times, so that little is built again
        pip = f"{sys.executable} -m pip install -q --no-deps --no-build-isolation --no-compile --upgrade".split()
        subprocess.run([*pip, "--target", self.site, f"-Cbuild-dir={self.build}", self.tree], check=True)

    def run(self, command: list[str], seconds: float) -> int | None:
        """Return the exit status, or None if it took too long."""
        null = subprocess.DEVNULL
        with subprocess.Popen(
            command, cwd=self.tree, env=self.environment, stdout=null, stderr=null, start_new_session=True
        ) as process:
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return None

    def make(self) -> bool:
        """Build, and put the extension modules in place."""
        if self.run(["ninja", f"-j{self.jobs}", "-C", str(self.build)], self.timeout):
            return False
        for path in (self.build / "sedq/_core").glob("*.so"):
            place = self.site / "sedq/_core" / path.name
            place.unlink(missing_ok=True)
            shutil.copy2(path, place)
        return True

    def test(self, names: list[str]) -> str:
        """Run files of tests until one fails, first those that failed most often; return what became of the mutation."""
        pytest = f"{sys.executable} -P -m pytest -x -q -p no:cacheprovider".split()
        for name in sorted(names, key=lambda name: -self.killers[name]):
            status = self.run([*pytest, name], self.timeout)
            if status is None:
                return "timed out"
            if status in (3, 4, 5):  # of pytest itself; a crash has a negative one
                raise SystemExit(f"pytest ended with status {status}: {name}")
            if status:
                self.killers[name] += 1
                return "killed"
        return "survived"

    def write(self, path: Path, text: str) -> None:
        """Write a file; its time is a new one, so that neither bytecode nor objects of an earlier text seem to fit."""
        self.stamp = max(self.stamp + 1, math.ceil(time.time()))
        path.write_text(text, "utf-8")
        os.utime(path, (self.stamp, self.stamp))

    def outcome(self, mutation: Mutation) -> str:
        """Try a mutation, and take it back."""
        python = mutation.path.endswith(".py")
        path = (self.site if python else self.tree) / mutation.path
        text = path.read_text("utf-8")
        try:
            self.write(path, mutation.applied(text))
            return self.test(tests_of(mutation.path)) if python or self.make() else "does not build"
        finally:
            self.write(path, text)


def equivalents() -> dict[tuple[str, str, str], str]:
    """Why mutations change nothing, by their file and their source line before and after the change."""
    entries = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))["equivalent"]
    return {(entry["file"], entry["before"], entry["after"]): entry["reason"] for entry in entries}


def main(arguments: list[str] | None = None) -> int:
    """Run, and print what survived; the exit status is 1 if anything did."""
    parser = argparse.ArgumentParser(description="Mutation test of the detectors.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*", help="files, as a pattern, such as 'sedq/_core/*'")
    parser.add_argument("--list", action="store_true", help="print the mutations, and run nothing")
    parser.add_argument("--limit", type=int, help="try so many, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="of the compiler")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for the build, and for each file of tests")
    parser.add_argument("--again", action="store_true", help="try those again that survived before")
    options = parser.parse_args(arguments)
    todo = list(mutants.mutations(ROOT, options.only))
    if options.limit is not None:
        chosen = set(random.Random(options.seed).sample(range(len(todo)), min(options.limit, len(todo))))
        todo = [m for number, m in enumerate(todo) if number in chosen]
    reasons, known = equivalents(), {}
    log = options.folder / "log.jsonl"
    for record in map(json.loads, log.read_text("utf-8").splitlines() if log.exists() else ()):
        known[record["path"], record["line"], record["before"], record["after"]] = record["outcome"]
    results: dict[Mutation, str] = {}
    workshop: Workshop | None = None
    os.nice(0 if options.list else 19)
    for m in todo:
        outcome = known.get((m.path, m.line, m.before, m.after))
        outcome = None if options.again and outcome == "survived" else outcome
        if (m.path, m.before, m.after) in reasons:
            outcome = "equivalent"
        if options.list:
            print(f"{m.path}:{m.line}: {m.kind}: {m.before}  ->  {m.after}")
        elif outcome is None:
            if workshop is None:
                options.folder.mkdir(parents=True, exist_ok=True)
                workshop = Workshop(options.folder, options.timeout, options.jobs)
                tests = list(dict.fromkeys(name for one in todo for name in tests_of(one.path)))
                if not workshop.make() or workshop.test(tests) != "survived":
                    raise SystemExit("The tests must pass before anything is changed: " + " ".join(tests))
            begin = time.monotonic()
            outcome = workshop.outcome(m)
            seconds = round(time.monotonic() - begin, 1)
            record = asdict(m) | {"tests": tests_of(m.path), "outcome": outcome, "seconds": seconds}
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            print(f"{outcome}: {m.path}:{m.line}: {m.kind}: {m.before}  ->  {m.after}", flush=True)
        results[m] = outcome or ""
    if options.list:
        return 0
    print("\n" + ", ".join(f"{n} {outcome}" for outcome, n in collections.Counter(results.values()).most_common()))
    survivors = [m for m, outcome in results.items() if outcome == "survived"]
    for m in survivors:
        print(f"\n{m.path}:{m.line}: {m.kind}\n  - {m.before}\n  + {m.after}\n  tests: {' '.join(tests_of(m.path))}")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())

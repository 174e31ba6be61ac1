"""Mutations of the code that detects and recovers; `mutations.py` tries them.

Mutations are found by their form, not by a list of places:

=========  ====================================================================================================
Python     In functions that verify or recover (`WORDS`): each condition becomes True, then False; each operand of
           and/or is left out; each comparison elsewhere becomes True, then False; each call whose result is not
           used is left out. A test that kills both constants kills the negation too.
Cython     Each `if` that guards a report is never taken, and one that returns early from a check always; each operand
           of its and/or is left out; what it compares is cut to 16 bits; each `+=`, `-=`, `|=` and `^=` is left out.
C          Each statement that adds to a sum is left out, each sum that is handed on is 0; each condition of a scan or
           of a comparison of digests is never met, and each operand of its && and || is left out.
=========  ====================================================================================================
"""

from __future__ import annotations

import ast
import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Mutation", "find", "mutations"]

PYTHON = ("sedq/recovery.py", "sedq/linear.py", "sedq/qparams.py", "sedq/embedding/*.py", "sedq/weights/*.py")
COMPILED = ("sedq/_core/_*.pyx", "sedq/_core/kernels/*.c", "sedq/_core/kernels/*.h")
# functions that detect or recover: one of these in a name or a docstring, or in those of their class
WORDS = re.compile(
    r"verif|heal|mend|compar|agree|repair|recover|restor|corrupt|intact|sound|confirm|digest|crc|suspect|witness|"
    r"disagree|deal|handle|again|doubt|findings|replay|rounding|accept|rebuil|contradict",
    re.I,
)
SUMS = re.compile(
    r"sum|check|digest|bytes|codes|params|rows|weight|refer|magn|pooled|bits|twice|visited|products|biases|sizes|dot\b|total|"
    r"all\b|odd\b|nan|->acc|->out"
)
GUARDED = re.compile(r"sedq_report|findings|\.append\(|\bverify_|check_inputs|report_|IndexError|nan_row")


@dataclass(frozen=True)
class Mutation:
    """A change of one place: `before` and `after` are its source lines, without line breaks."""

    path: str
    line: int
    kind: str
    before: str
    after: str
    start: int
    end: int
    new: str

    def applied(self, text: str) -> str:
        """Return the text of the file with the change."""
        return text[: self.start] + self.new + text[self.end :]


class Source:
    """A file, and where mutations of it are collected."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text
        self.found: list[Mutation] = []
        c = path.endswith((".c", ".h"))
        skipped = r"/\*.*?\*/|//[^\n]*" if c else r'"""(?:.*?)"""|#[^\n]*'
        strings = r"""|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'"""
        # the code alone, at the same positions
        self.code = re.sub(skipped + strings, lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.S)

    def add(self, kind: str, start: int, end: int, new: str) -> None:
        """Collect a mutation, unless the text is already that."""
        if self.text[start:end] == new:
            return
        first = self.text.rfind("\n", 0, start) + 1
        last = self.text.find("\n", end)
        last = len(self.text) if last < 0 else last
        before, after = self.text[first:last], self.text[first:start] + new + self.text[end:last]
        line = self.text.count("\n", 0, start) + 1
        mutation = Mutation(self.path, line, kind, " ".join(before.split()), " ".join(after.split()), start, end, new)
        if mutation.after not in {m.after for m in self.found if m.line == line}:
            self.found.append(mutation)

    def parts(self, start: int, end: int, word: str) -> list[tuple[int, int]]:
        """Where the operands of an operator stand that is outside brackets, or the whole."""
        cuts, depth = [start], 0
        for m in re.finditer(rf"[([]|[)\]]|{word}", self.code[start:end]):
            depth += (m[0] in "([") - (m[0] in ")]")
            if (depth == 0 and m[0] not in "([)]") or depth < 0:
                cuts += [start + m.start(), start + m.end()]
        cuts.append(end)
        return list(zip(cuts[::2], cuts[1::2], strict=True))

    def weaken(self, start: int, end: int, words: tuple[str, str], constants: tuple[str, str]) -> None:
        """Leave out each operand of a condition's `or` and `and`; compare 16 bits where numbers are compared."""
        while self.code[start:end][:1].isspace():
            start += 1
        end -= len(self.code[start:end]) - len(self.code[start:end].rstrip())
        if self.code[start] == "(" and self.parts(start + 1, end, r"\)")[0][1] == end - 1:
            start, end = start + 1, end - 1
        for word, constant in zip(words, constants, strict=True):
            parts = self.parts(start, end, word)
            if len(parts) > 1:
                for a, b in parts:
                    a += len(self.code[a:b]) - len(self.code[a:b].lstrip())
                    b -= len(self.code[a:b]) - len(self.code[a:b].rstrip())
                    self.add("operand left out", a, b, constant)
                    self.weaken(a, b, words, constants)
                return
        sides, condition = self.parts(start, end, "!="), self.code[start:end]
        if len(sides) == 2 and not re.search(r"\*>|NULL|None|scale|\.out\b|\.indices\b|\.offsets !=", condition):
            left, right = (self.text[a:b].strip() for a, b in sides)
            self.add("16 bits compared", start, end, f"(({left}) & 0xffff) != (({right}) & 0xffff)")
        elif re.fullmatch(r"\w+\.(?!check)\w+", condition):
            self.add("16 bits compared", start, end, f"({self.text[start:end]} & 0xffff)")


def python_mutations(source: Source) -> None:
    """Constants for conditions and comparisons, operands and calls left out."""
    tree = ast.parse(source.text)
    starts = [0]
    for line in source.text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line.decode()))

    def change(node: ast.expr | ast.stmt, kind: str, new: str) -> None:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        source.add(kind, starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset, new)

    def visit(node: ast.AST, words: str, inside: bool) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            words += f" {node.name} {(ast.get_docstring(node) or '').partition(chr(10))[0]}"
            inside = isinstance(node, ast.FunctionDef) and bool(WORDS.search(words)) and not node.name.startswith("__repr")
        tests = [node.test] if isinstance(node, ast.If | ast.IfExp) else []
        tests += node.ifs if isinstance(node, ast.comprehension) else []
        if inside:
            tests += [node] if isinstance(node, ast.Compare) else []
            for test in tests:
                change(test, "condition", "True")
                change(test, "condition", "False")
            if isinstance(node, ast.BoolOp):
                for operand in node.values:
                    change(operand, "operand left out", str(isinstance(node.op, ast.And)))
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                change(node, "call left out", "pass")
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.Assert) and ast.unparse(child) != "settings.num_threads or 0":
                visit(child, words, inside)

    visit(tree, "", False)


def cython_mutations(source: Source) -> None:
    """Guards of reports never taken, early ends of checks always; what they compare weakened; sums not summed."""
    code = source.code
    loops = set(re.findall(r"\w+", " ".join(re.findall(r"^ *while (.*):$", code, re.M))))
    for function in re.finditer(r"^(?:cdef|cpdef|def) [^\n]*\b(\w+)\((?:.|\n)*?(?=^\S|\Z)", code, re.M):
        body, at = function[0], function.start()
        reports = bool(GUARDED.search(body))
        for m in re.finditer(r"^( *)(?:el)?if (?=\S)", body, re.M):
            start = at + m.end()
            end = source.parts(start, at + len(body), ":")[0][1]
            block = re.match(rf"(?:(?:{m[1]} +[^\n]*)?\n)*", code[end + 2 :])
            if block and GUARDED.search(block[0]):
                source.add("guard never taken", start, end, "False")
                source.weaken(start, end, (r"\bor\b", r"\band\b"), ("False", "True"))
            elif block and reports and re.fullmatch(r"\s*(return|continue)( \w+)?\s*", block[0]):
                source.add("always left early", start, end, "True")
                source.weaken(start, end, (r"\bor\b", r"\band\b"), ("False", "True"))
        if re.search(r"cdef bint|verif|astray", function[0].split("(")[0]):
            for m in re.finditer(r"^    return (?=.*\bor\b|\()", body, re.M):
                end = at + len(body.rstrip())
                inner = re.match(r"\((.*)\)\s*$", code[at + m.end() : end], re.S)
                start = at + m.end() + (inner.start(1) if inner else 0)
                source.weaken(start, start + len(inner[1]) if inner else end, (r"\bor\b", r"\band\b"), ("False", "True"))
        for m in re.finditer(r"^ +([\w.\[\]+ -]+?) [+|^-]= [^\n]*$", body, re.M):
            if m[1] not in loops:
                source.add("not added", at + m.start(1), at + m.end(), "pass")


def c_mutations(source: Source) -> None:
    """Sums not summed or 0; conditions of scans never met."""
    code = source.code
    for m in re.finditer(r"(?:\n *|\) |; )(\*?[a-z_]\w*(?:->\w+|\.\w+|\[[^\]\n]*\])*) ([-+|^]?=) ([^;{}]*);", code):
        target, adds = m[1], m[2] != "=" or re.search(rf"(?<![\w>.]){re.escape(m[1].lstrip('*'))}(?![\w\[])", m[3])
        if not SUMS.search(target):
            continue
        if adds:
            source.add("not added", m.start(1), m.end() - 1, "(void)0")
        elif re.match(r"sums?->|\*sum", target) and m[3] != "0":
            source.add("sum is 0", m.start(3), m.end(3), "0")
    for m in re.finditer(r"\n *(?:if \(\w+\) )?((?:add|check|sum|compare|store_sums)(?:_[a-z]+)?\([^;{}]*\));", code):
        source.add("call left out", m.start(1), m.end(1), "(void)0")
    for function in re.finditer(r"^\w[^;{}\n]*\b(\w+)\([^;{}]*\)\n\{\n(.*?)^\}", code, re.M | re.S):
        if not re.search(r"scan|range|compare|fit|digest", function[1]):
            continue
        for m in re.finditer(r"\bif \((?=[^{};]*(?:break|return)\b)|\bsame = ", function[2]):
            start = function.start(2) + m.end()
            end = source.parts(start, function.end(2), r"\)|;")[0][1]
            source.add("comparison left out", start, end, "1" if "same" in m[0] else "0")
            source.weaken(start, end, (r"\|\|", "&&"), ("0", "1"))


def find(path: str, text: str) -> list[Mutation]:
    """Return all mutations of a file."""
    source = Source(path, text)
    {".py": python_mutations, ".pyx": cython_mutations}.get(Path(path).suffix, c_mutations)(source)
    return sorted(source.found, key=lambda m: m.start)


def mutations(tree: Path, only: str = "*") -> Iterator[Mutation]:
    """Find all mutations of the files that fit a pattern, those of Python first."""
    for patterns in (PYTHON, COMPILED):
        for path in sorted({p for pattern in patterns for p in tree.glob(pattern)}):
            name = path.relative_to(tree).as_posix()
            if fnmatch.fnmatch(name, only):
                yield from find(name, path.read_text("utf-8"))

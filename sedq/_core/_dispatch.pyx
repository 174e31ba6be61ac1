"""Which instruction sets are built, which this CPU supports, which one is chosen; and how many threads work.

A `Context` is one instruction set's kernels. The best that runs natively is chosen when this module is imported;
the environment variable ``SEDQ_ISA`` names another. Every compiled entry point takes a context as an argument, so that
tests can run each on every available one.
"""

import os

from sedq._core._openmp cimport SEDQ_OPENMP, sedq_max_threads


cdef extern from "kernels/registry.h" nogil:
    int sedq_isa_count()
    const char *sedq_isa_name(int i)
    int sedq_isa_built(int i)
    int sedq_isa_supported(int i)
    int sedq_isa_emulated(int i)
    void sedq_isa_context(int i, sedq_context *c)
    void sedq_scalar_context(sedq_context *c)


cdef extern from "cpu.h" nogil:
    int sedq_current_cpu()


# Work is counted in nanoseconds of one thread, roughly: with less than this a second one costs more than it brings.
cdef int64_t WORK_PER_THREAD = 20_000

# No machine has more, and starting them would exhaust what there is.
cdef int MOST_THREADS = 1024

# A child forked after a parallel region hangs in libgomp, which has lost its threads: children run on one.
cdef bint forked = False


# What a call may find at most, and the numbers of the kinds of findings.
MAX_FINDINGS = SEDQ_MAX_FINDINGS
KINDS = {
    "accumulator": SEDQ_BAD_ACCUMULATOR,
    "input": SEDQ_BAD_INPUT,
    "output": SEDQ_BAD_OUTPUT,
    "parameters": SEDQ_BAD_PARAMETERS,
    "epilogue": SEDQ_BAD_EPILOGUE,
    "count": SEDQ_BAD_COUNT,
    "digest": SEDQ_BAD_DIGEST,
    "sum": SEDQ_BAD_SUM,
    "repeat": SEDQ_BAD_REPEAT,
    "overflow": SEDQ_BAD_OVERFLOW,
}


cdef class Context:
    """The kernels of one instruction set."""

    def __repr__(self):
        return f"<kernels {self.name}{' with fault hook' if self.hooked else ''}>"

    def __reduce__(self):
        return (scalar, ()) if self.name == "scalar" else (get, (self.name,))

    @property
    def mr(self):
        """Rows of a tile."""
        return self.c.mr


def known():
    """Names of all instruction sets that sedq knows, the best last."""
    return [sedq_isa_name(i).decode() for i in range(sedq_isa_count())]


def built():
    """Names of the instruction sets compiled in, the best last."""
    return [name for i, name in enumerate(known()) if sedq_isa_built(i)]


def supported():
    """Names of the instruction sets that this CPU supports, natively or emulated, the best last."""
    return [name for i, name in enumerate(known()) if sedq_isa_supported(i)]


def available():
    """Names of the instruction sets both built and supported, the best last."""
    names = supported()
    return [name for name in built() if name in names]


def emulated():
    """Names of the instruction sets that other instructions stand in for: none but in a test build."""
    return [name for i, name in enumerate(known()) if sedq_isa_emulated(i)]


def get(str name):
    """The context of an available instruction set; ValueError for any other name."""
    if name not in available():
        raise ValueError(f"instruction set {name!r} is not available: built {', '.join(built())}; "
                         f"supported by this CPU {', '.join(supported())}")
    cdef Context context = Context()
    sedq_isa_context(known().index(name), &context.c)
    context.name = name
    return context


def scalar():
    """The portable kernels compiled without vector instructions: for recovery, which wants another code path."""
    cdef Context context = Context()
    sedq_scalar_context(&context.c)
    context.name = "scalar"
    return context


def paths(Context context):
    """Contexts by which to compute again what `context` got wrong, three of them where there are three.

    Two of different code come first: another instruction set's if there is one, and those of `context` itself, which are to
    run on another core. The portable kernels decide between them.
    """
    other = [name for name in available() if name not in ("reference", context.name) and name not in emulated()][-1:]
    names = dict.fromkeys([*(other or ["reference"]), context.name, "reference", "scalar"])
    return [scalar() if name == "scalar" else get(name) for name in names][:3]


def _choose():
    name = os.environ.get("SEDQ_ISA")
    if name is None:
        return get([name for name in available() if name not in emulated()].pop())  # the best is last
    try:
        return get(name)
    except ValueError as error:
        raise ValueError(f"environment variable SEDQ_ISA: {error}") from None


def has_openmp():
    """Whether this build runs loops on several threads."""
    return bool(SEDQ_OPENMP)


def current_cpu():
    """Number of the CPU that this thread runs on, or -1 where the system doesn't tell."""
    return sedq_current_cpu()


def max_threads():
    """Threads that a call uses when none are named: what OpenMP says now, or 1 in a forked child."""
    return 1 if forked else sedq_max_threads()


cpdef int threads_for(int requested, int64_t work):
    """Threads for a call of about `work` nanoseconds of one; `requested` 0 means all, as far as the work is worth it."""
    cdef int most
    if forked or not SEDQ_OPENMP:
        return 1
    most = min(requested, MOST_THREADS) if requested > 0 else sedq_max_threads()
    return <int>max(1, min(most, work // WORK_PER_THREAD))


cdef object findings_list(const sedq_findings *f):
    """What was found, as `_findings.Findings`."""
    from sedq._core._findings import Finding, Findings, Kind

    cdef int64_t i
    found = [Finding(f.entry[i].row, Kind(f.entry[i].kind), f.entry[i].residual, f.entry[i].limit)
             for i in range(min(f.count, SEDQ_MAX_FINDINGS))]
    return Findings(found, cut_off=f.count > SEDQ_MAX_FINDINGS)


def _after_fork():
    global forked
    forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

# The context chosen when this module was imported.
default = _choose()

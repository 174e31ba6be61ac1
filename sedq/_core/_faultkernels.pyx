"""The kernels a second time, compiled with a fault hook. Only sedq.faults loads this module.

A plan per site says at which visit (a tile, a bag, a row of codes) which word changes and how. Plans belong to a thread
and count its visits, so calls use one thread.
"""

from libc.stdint cimport int64_t, uint32_t

from sedq._core._dispatch cimport Context, sedq_context

from sedq._core import _dispatch


cdef extern from "kernels/registry.h" nogil:
    void sedq_isa_context_hooked(int i, sedq_context *c)


cdef extern from "kernels/fault_hook.h" nogil:
    ctypedef struct sedq_fault_plan:
        int64_t countdown, element
        uint32_t keep, put, flip, add
        int pair
        int64_t repeat, fired, changed
    sedq_fault_plan *sedq_fault_plans

# in the order of the enumeration in fault_hook.h
SITES = ("tile", "bag", "epilogue", "address", "store", "pooled", "checks", "sums", "codes", "dots", "index", "request",
         "chunk", "read", "rowsum", "given")


def hooked(str name):
    """The context of an available instruction set, with the hook in its kernels."""
    cdef Context context = _dispatch.get(name)
    sedq_isa_context_hooked(_dispatch.known().index(name), &context.c)
    context.name, context.hooked = name, True
    return context


cdef sedq_fault_plan *plan_of(str kernel) except NULL:
    if kernel not in SITES:
        raise ValueError(f"kernel: got {kernel!r}, expected one of {', '.join(map(repr, SITES))}")
    return &sedq_fault_plans[<int>SITES.index(kernel)]


def arm(str kernel, int64_t visit, int64_t element, uint32_t flip, int64_t repeat=1, uint32_t keep=0xFFFFFFFF,
        uint32_t put=0, uint32_t add=0, bint pair=False):
    """Strike word `element` at the given visit and at the repeat - 1 visits after it: (((w & keep) | put) ^ flip) + add.

    With `pair` the word after it, in its row, takes -add.
    """
    cdef sedq_fault_plan *plan = plan_of(kernel)
    if visit < 0 or element < 0 or repeat < 1:
        raise ValueError(f"got visit {visit}, element {element}, repeat {repeat}, expected at least 0, 0, 1")
    plan.countdown, plan.element, plan.repeat, plan.fired, plan.changed = visit + 1, element, repeat, 0, 0
    plan.keep, plan.put, plan.flip, plan.add, plan.pair = keep, put, flip, add, pair


def disarm(str kernel):
    """Disarm a plan; how many visits it struck, how many were left to pass (-1 if none), and how many words changed."""
    cdef sedq_fault_plan *plan = plan_of(kernel)
    left, plan.countdown = plan.countdown - 1, 0
    return plan.fired, left, plan.changed

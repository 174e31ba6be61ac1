"""The kernels a second time, compiled with a fault hook. Only sedq.faults loads this module.

A plan per kind of kernel says at which visit (tile, or bag) which bits of which accumulator flip. Visits are counted over
the process, so use one thread.
"""

from libc.stdint cimport int64_t, uint32_t

from sedq._core._dispatch cimport Context, sedq_context

from sedq._core import _dispatch


cdef extern from "kernels/registry.h" nogil:
    void sedq_isa_context_hooked(int i, sedq_context *c)


cdef extern from "kernels/fault_hook.h" nogil:
    ctypedef struct sedq_fault_plan:
        int64_t countdown, element
        uint32_t flip
        int64_t repeat, fired
    sedq_fault_plan sedq_tile_fault
    sedq_fault_plan sedq_bag_fault


def hooked(str name):
    """The context of an available instruction set, with the hook in its kernels."""
    cdef Context context = _dispatch.get(name)
    sedq_isa_context_hooked(_dispatch.known().index(name), &context.c)
    context.name, context.hooked = name, True
    return context


cdef sedq_fault_plan *plan_of(str kernel) except NULL:
    if kernel == "tile":
        return &sedq_tile_fault
    if kernel == "bag":
        return &sedq_bag_fault
    raise ValueError(f"kernel: got {kernel!r}, expected 'tile' or 'bag'")


def arm(str kernel, int64_t visit, int64_t element, uint32_t flip, int64_t repeat=1):
    """Flip the bits `flip` of accumulator `element` at the given visit, and at the repeat - 1 visits after it."""
    cdef sedq_fault_plan *plan = plan_of(kernel)
    if visit < 0 or element < 0 or repeat < 1:
        raise ValueError(f"got visit {visit}, element {element}, repeat {repeat}, expected at least 0, 0, 1")
    plan.countdown, plan.element, plan.flip, plan.repeat, plan.fired = visit, element, flip, repeat, 0


def disarm(str kernel):
    """Disarm the plan; how many visits it struck, and how many were left to pass (-1 if none)."""
    cdef sedq_fault_plan *plan = plan_of(kernel)
    left, plan.countdown = plan.countdown, -1
    return plan.fired, left

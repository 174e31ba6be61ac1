"""Another process as a debugger sees it: stop it, flip a bit of a register, let it go on. Only sedq.faults.live loads this.

Linux on x86-64 (SUPPORTED); elsewhere every call raises OSError. Calls for one process must come from the thread that
seized it.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

import errno
import os


cdef extern from "ptrace_x86.h" nogil:
    const int SEDQ_PTRACE
    const int SEDQ_GENERAL, SEDQ_VECTOR, SEDQ_MASK, SEDQ_RIP, SEDQ_FLAGS
    const int SEDQ_X_AVX, SEDQ_X_HI16_ZMM
    const int SEDQ_WROTE, SEDQ_STOPPED, SEDQ_ENDED, SEDQ_SILENT
    uint64_t sedq_xcr0()
    int sedq_seize(int pid)
    int sedq_resume(int pid, int signal)
    int sedq_pc(int pid, uint64_t *pc)
    int sedq_interrupt(int pid, int64_t delay, uint64_t *pc)
    int sedq_flip(int pid, int kind, int number, int bit)
    int sedq_await(int pid, int fd, int64_t timeout, int *value)
    void sedq_kill(int pid)
    int sedq_probe(void *state, uint64_t loops)

SUPPORTED = bool(SEDQ_PTRACE)

# What `Tracee.wait` may return.
WROTE = SEDQ_WROTE
STOPPED = SEDQ_STOPPED
ENDED = SEDQ_ENDED
SILENT = SEDQ_SILENT

# Bytes of what `probe` holds: 16 general registers of 8, 32 vector registers of 64, 8 mask registers of 8.
PROBE_BYTES = 2240

cdef dict KINDS = {"general": SEDQ_GENERAL, "vector": SEDQ_VECTOR, "mask": SEDQ_MASK, "rip": SEDQ_RIP, "flags": SEDQ_FLAGS}


def registers():
    """Registers of this machine by class: how many, and bits of each."""
    cdef uint64_t enabled = sedq_xcr0()
    if not SEDQ_PTRACE:
        return {}
    shape = {"general": (16, 64), "vector": (16, 128), "rip": (1, 64), "flags": (1, 12)}
    if enabled >> SEDQ_X_AVX & 1:
        shape["vector"] = (16, 256)
    if enabled >> SEDQ_X_HI16_ZMM & 1:
        shape["vector"], shape["mask"] = (32, 512), (8, 64)
    return shape


cdef int checked(int status, str what) except -1:
    if status < 0:
        raise OSError(-status, f"{what}: {os.strerror(-status)}")
    return status


cdef class Tracee:
    """A seized process, which dies with the thread that seized it. Once it has ended its number may be another's."""

    cdef readonly int pid
    cdef readonly bint ended

    def __init__(self, int pid):
        checked(sedq_seize(pid), "ptrace: seize")
        self.pid = pid

    def interrupt(self, int64_t delay):
        """Stop the process after `delay` nanoseconds, and return its program counter; ProcessLookupError if it ended."""
        cdef uint64_t pc = 0
        cdef int status
        with nogil:
            status = sedq_interrupt(self.pid, delay, &pc)
        self.ended = status in (SEDQ_ENDED, -errno.ECHILD)
        checked(-errno.ESRCH if self.ended else status, "ptrace: interrupt")
        return pc

    def pc(self):
        """Program counter of the stopped process."""
        cdef uint64_t pc = 0
        checked(sedq_pc(self.pid, &pc), "ptrace: registers")
        return pc

    def flip(self, str kind, int number, int bit):
        """Flip one bit of one register of the stopped process; see `registers` for what there is."""
        count, bits = registers()[kind]
        if not 0 <= number < count or not 0 <= bit < bits:
            raise ValueError(f"got bit {bit} of {kind} register {number}, expected one of {bits} bits of {count}")
        checked(sedq_flip(self.pid, KINDS[kind], number, bit), "ptrace: flip")

    def resume(self):
        """Let the stopped process go on."""
        checked(sedq_resume(self.pid, 0), "ptrace: continue")

    def wait(self, int fd, int64_t timeout):
        """What the process does first within `timeout` nanoseconds, and which: writes a byte to fd (WROTE, the byte), meets
        a fatal signal (STOPPED, the signal), ends (ENDED, the wait status), or none of it (SILENT, 0)."""
        cdef int value = 0, status
        with nogil:
            status = sedq_await(self.pid, fd, timeout, &value)
        self.ended = status in (SEDQ_ENDED, -errno.ECHILD)
        checked(status, "ptrace: wait")
        return status, value

    def kill(self):
        """Kill the process, unless it has ended."""
        if not self.ended:
            with nogil:
                sedq_kill(self.pid)
            self.ended = True


def probe(uint8_t[::1] state, uint64_t loops):
    """Load all registers from `state`, hold them through an empty loop, and store them again.

    rcx counts the loop, rdi points to the state, rsp to the stack: they are left out.
    """
    cdef int status
    if state.shape[0] != PROBE_BYTES or loops < 1:
        raise ValueError(f"got {state.shape[0]} bytes and {loops} loops, expected {PROBE_BYTES} and at least 1")
    with nogil:
        status = sedq_probe(&state[0], loops)
    checked(status, "probe")

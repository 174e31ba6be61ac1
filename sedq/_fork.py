"""Locks that are held around a fork, so that a child never inherits state that another thread was changing.

Every lock that protects state of this package is made by `new_lock`. Before a fork the forking thread acquires all of them.
It releases them afterwards, in the parent and in the child.
"""

from __future__ import annotations

import os
import threading
import weakref

__all__ = ["new_lock"]

_registry = threading.RLock()  # held to make a lock, so that none is made during a fork
_locks: weakref.WeakSet[threading.RLock] = weakref.WeakSet()
_held: list[threading.RLock] = []


def new_lock() -> threading.RLock:
    """Return a lock that is held around a fork. It is reentrant, because a thread may fork while it holds the lock."""
    lock = threading.RLock()
    with _registry:
        _locks.add(lock)
    return lock


def _acquire_all() -> list[threading.RLock]:
    """Acquire every lock. Waits only while it holds no other, so that it can't deadlock whatever order others go by."""
    wait_for = _registry
    while True:
        with wait_for:
            held: list[threading.RLock] = []
            blocked = _acquire_free(held)
        if blocked is None:
            return held
        wait_for = blocked


def _acquire_free(held: list[threading.RLock]) -> threading.RLock | None:
    """Acquire every lock that is free; None if all are held now, else release them and return the one that was not free."""
    try:
        if not _registry.acquire(blocking=False):
            return _registry
        held.append(_registry)
        for lock in list(_locks):
            if not lock.acquire(blocking=False):
                _release(held)
                return lock
            held.append(lock)
    except BaseException:  # an interrupt
        _release(held)
        raise
    return None


def _release(held: list[threading.RLock]) -> None:
    while held:
        held.pop().release()


def _before_fork() -> None:
    global _held
    _held = _acquire_all()


def _after_fork() -> None:
    global _held
    held, _held = _held, []
    _release(held)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)

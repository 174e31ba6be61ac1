"""The surrounding settings of a call: level of checking, what to do on a detection, threads, kernels."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from sedq import _fork, _validation
from sedq._core import _dispatch

__all__ = ["Settings", "config_context", "get_config", "resolve", "set_config", "use_kernels"]

CHECKS = ("off", "exact", "full", "mod127", "digest", "threshold")
ON_ERROR = ("recover", "raise", "warn")
MAX_THREADS = 2**31 - 1


class Settings(NamedTuple):
    """Settings that calls use where their own arguments are None.

    Attributes
    ----------
    check : str
        Level of checking.
    on_error : str
        ``"recover"``, ``"raise"`` or ``"warn"``.
    num_threads : int or None
        Threads per call; None for as many as OpenMP allows.
    kernels : object
        The instruction set's kernels.
    """

    check: str
    on_error: str
    num_threads: int | None
    kernels: _dispatch.Context


_process = Settings("exact", "recover", None, _dispatch.default)  # where no context is open
_settings: ContextVar[Settings | None] = ContextVar("sedq_settings", default=None)
_lock = _fork.new_lock()


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, choices))}")
    return value


@functools.lru_cache(maxsize=256, typed=True)
def _merged(settings: Settings, check: str | None, on_error: str | None, num_threads: int | None) -> Settings:
    if settings.kernels.hooked and num_threads is not None:
        num_threads = 1  # a fault plan counts visits over the process
    return Settings(
        settings.check if check is None else _choice("check", check, CHECKS),
        settings.on_error if on_error is None else _choice("on_error", on_error, ON_ERROR),
        settings.num_threads if num_threads is None else _validation.integer("num_threads", num_threads, 1, MAX_THREADS),
        settings.kernels,
    )


def resolve(check: str | None, on_error: str | None, num_threads: int | None) -> Settings:
    """Return the settings of a call: its own arguments where given, the surrounding ones elsewhere."""
    settings = get_config()
    if check is None and on_error is None and num_threads is None:
        return settings
    return _over(settings, check, on_error, num_threads)


def _over(settings: Settings, check: str | None, on_error: str | None, num_threads: int | None) -> Settings:
    try:
        return _merged(settings, check, on_error, num_threads)
    except TypeError:  # what can't be remembered isn't right either, and says so here
        return _merged.__wrapped__(settings, check, on_error, num_threads)


def get_config() -> Settings:
    """Return the settings in force here: of the innermost `config_context`, else of the process.

    Examples
    --------
    >>> import sedq
    >>> sedq.get_config().check
    'exact'
    """
    return _settings.get() or _process


def set_config(*, check: str | None = None, on_error: str | None = None, num_threads: int | None = None) -> None:
    """Set for the whole process what calls do where their own arguments are None.

    Every thread goes by it, also those that a framework starts, except inside a `config_context`, which has been given its
    settings when it was opened. Processes that are started afterwards, other than by a fork, have the defaults again.

    Parameters
    ----------
    check, on_error, num_threads
        As for `config_context`; what is None stays as it is, so that a number of threads, once set, can only be replaced by
        another.

    Raises
    ------
    ValueError
        For any other value. Nothing is set then.

    Examples
    --------
    >>> import sedq
    >>> sedq.set_config(on_error="raise")
    >>> sedq.get_config().on_error
    'raise'
    >>> sedq.set_config(on_error="recover")
    """
    global _process
    with _lock:
        _process = _over(_process, check, on_error, num_threads)


@contextmanager
def config_context(
    *, check: str | None = None, on_error: str | None = None, num_threads: int | None = None
) -> Iterator[None]:
    """Set what calls inside a ``with`` block do where their own arguments are None.

    Settings belong to the current thread or asynchronous task (`contextvars`), nest, and end with the block.

    Parameters
    ----------
    check : {"exact", "full", "mod127", "digest", "threshold", "off"}, optional
        Level of checking, ``"exact"`` by default. A level that an operator does not have raises when it is called.
    on_error : {"recover", "raise", "warn"}, optional
        What to do on a detection, ``"recover"`` by default.
    num_threads : int, optional
        Threads per call.

    Raises
    ------
    ValueError
        For any other value.

    Examples
    --------
    >>> import sedq
    >>> with sedq.config_context(check="off"):
    ...     sedq.get_config().check
    'off'
    """
    token = _settings.set(resolve(check, on_error, num_threads))
    try:
        yield
    finally:
        _settings.reset(token)


@contextmanager
def use_kernels(kernels: _dispatch.Context) -> Iterator[None]:
    """Run calls inside a ``with`` block on other kernels: another instruction set, or ones with a fault hook."""
    token = _settings.set(get_config()._replace(kernels=kernels))
    try:
        yield
    finally:
        _settings.reset(token)

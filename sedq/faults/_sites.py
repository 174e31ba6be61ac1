"""Which sites a target has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sedq import _config
from sedq.faults import _strike, _targets

__all__ = ["chosen", "site_names"]


def site_names(target: Any, inputs: Sequence[Any], check: str = "exact") -> list[str]:
    """Return the sites that a target has, on the kernels in force.

    Parameters
    ----------
    target, inputs
        As for `Campaign`.
    check : str, default "exact"
        Level of checking of the protected call.

    Returns
    -------
    list of str
    """
    found = _targets.target_of(target, inputs)
    with _config.config_context(num_threads=1):
        found.call(found.batches[0], "off", "bound")  # parameters are derived when they are first needed
        drawer = _strike.Drawer(found, (), (), (), 0, check, "bound")
        kernel = [s for s in found.kernel_sites if drawer.visits(s, 0, check)]
    given = [s for s in _strike.INPUT_SITES if s in found.batches[0] and len(found.batches[0][s])]
    return found.memory_sites() + kernel + ([_strike.FLOW_SITE] if found.flows() else []) + given


def chosen(given: Sequence[str] | None, known: list[str]) -> tuple[str, ...]:
    """Return the sites that were named, or all but those where a call may crash."""
    if given is None:
        return tuple(s for s in known if s not in _strike.MAY_CRASH)
    if isinstance(given, str) or not len(given) or any(s not in known for s in given):
        wrong = given if isinstance(given, str) else [s for s in given if s not in known]
        raise ValueError(f"sites: got {wrong!r}, expected some of {', '.join(known)}")
    return tuple(dict.fromkeys(given))

"""Whether values that were read from a file are of the types that a dataclass declares."""

from __future__ import annotations

from dataclasses import is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

__all__ = ["fits"]


def fits(value: Any, kind: Any) -> bool:
    """Whether a value that was read is of the type that its attribute is declared with."""
    origin, kinds = get_origin(kind), get_args(kind)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        return len(each) == len(value) and all(map(fits, value, each))
    if origin is dict:
        return isinstance(value, dict) and all(fits(v, kinds[1]) for v in value.values())
    if origin is UnionType:
        return any(fits(value, k) for k in kinds)
    if origin is not None:
        return isinstance(value, origin)
    if type(value) is int:
        return kind in (int, float) and abs(value) < 2**63
    if is_dataclass(kind):
        return type(value) is kind and all(fits(getattr(value, n), k) for n, k in get_type_hints(kind).items())
    return type(value) is kind

"""Read the raw files of the Anonymous Microsoft Web Data: areas of a web site, and which of them each user visited."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sedq.datasets._requests import IntArray

StrArray = npt.NDArray[np.str_]
PathLike = str | os.PathLike[str]

# Header lines of the raw format: they describe the file, not the data.
_IGNORED_KINDS = frozenset("ITN")


@dataclass(frozen=True, eq=False)
class RawMSWeb:
    """The raw data set.

    Attributes
    ----------
    area_ids : (294,) int64 array
        Identifiers used by the raw files, ascending; an area's *row* is its position here.
    titles, urls : (294,) str arrays
        Title and URL of every area.
    train_users, test_users : list of int64 arrays
        For every user, the ascending rows of the areas visited; no row twice.
    """

    area_ids: IntArray
    titles: StrArray
    urls: StrArray
    train_users: list[IntArray]
    test_users: list[IntArray]


def parse(data_path: PathLike, test_path: PathLike) -> RawMSWeb:
    """Read the training and the test file.

    Parameters
    ----------
    data_path, test_path : str or path
        ``anonymous-msweb.data`` and ``anonymous-msweb.test``.

    Returns
    -------
    RawMSWeb

    Raises
    ------
    ValueError
        If a file is malformed (the message has the file and the line), or if the two files do not
        list the same areas.
    """
    areas, train = _parse_file(data_path)
    test_areas, test = _parse_file(test_path)
    if areas != test_areas:
        raise ValueError(f"{os.fspath(test_path)}: areas differ from those of {os.fspath(data_path)}")
    ids = np.array(sorted(areas), dtype=np.int64)
    return RawMSWeb(
        area_ids=ids,
        titles=np.array([areas[int(i)][0] for i in ids], dtype=np.str_),
        urls=np.array([areas[int(i)][1] for i in ids], dtype=np.str_),
        train_users=[np.searchsorted(ids, sorted(user)).astype(np.int64) for user in train],
        test_users=[np.searchsorted(ids, sorted(user)).astype(np.int64) for user in test],
    )


def _parse_file(path: PathLike) -> tuple[dict[int, tuple[str, str]], list[list[int]]]:
    """Return the areas, id to (title, url), and the ids each user visited."""
    areas: dict[int, tuple[str, str]] = {}
    users: list[list[int]] = []
    for number, fields in _records(path):
        try:
            _parse_record(fields, areas, users)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from None
    if not areas:
        raise ValueError(f"{os.fspath(path)}: no area line")
    return areas, users


def _records(path: PathLike) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and fields of every line that is not blank."""
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                # One reader per line, or an unbalanced quote would swallow the lines after it.
                line = raw.decode("ascii").strip()
                rows = list(csv.reader([line], strict=True))
            except (UnicodeDecodeError, csv.Error) as error:
                raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from None
            if line:
                yield number, rows[0]


def _parse_record(fields: list[str], areas: dict[int, tuple[str, str]], users: list[list[int]]) -> None:
    kind = fields[0]
    if kind == "A":
        _expect(fields, 5)
        area = int(fields[1])
        if area in areas:
            raise ValueError(f"area {area} listed twice")
        areas[area] = (fields[3], fields[4])
    elif kind == "C":
        _expect(fields, 3)
        users.append([])
    elif kind == "V":
        _expect(fields, 3)
        _add_vote(int(fields[1]), areas, users)
    elif kind not in _IGNORED_KINDS:
        raise ValueError(f"unknown line type {kind!r}")


def _add_vote(area: int, areas: dict[int, tuple[str, str]], users: list[list[int]]) -> None:
    if not users:
        raise ValueError("vote line before the first case line")
    if area not in areas:
        raise ValueError(f"vote for unknown area {area}")
    if area in users[-1]:
        raise ValueError(f"area {area} visited twice by one user")
    users[-1].append(area)


def _expect(fields: list[str], count: int) -> None:
    if len(fields) != count:
        raise ValueError(f"{fields[0]!r} line has {len(fields)} fields instead of {count}")

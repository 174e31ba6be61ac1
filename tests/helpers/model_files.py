"""Model files as they were written before."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np


def as_version_1(path: Path) -> None:
    """Write a file anew as version 1 was, which had no blocks and said less of its tables."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if not name.endswith(".blocks")}
    header = json.loads(arrays.pop("header").tobytes())
    header["version"] = 1
    header["tables"] = [{name: table[name] for name in ("mode", "bits", "layout")} for table in header["tables"]]
    header["arrays"] = {name: header["arrays"][name] for name in arrays if name != "header_sha256"}
    text = json.dumps(header, sort_keys=True).encode()
    arrays["header"] = np.frombuffer(text, np.uint8)
    arrays["header_sha256"] = np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
    np.savez(path.with_suffix(".npz"), **arrays)
    path.with_suffix(".npz").replace(path)

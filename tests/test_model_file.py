"""Loading what was saved: round trips, and damaged, foreign and forged files, which are refused with one error."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq.datasets import load_msweb
from sedq.files import _archive

Array = NDArray[Any]
Arrays = dict[str, Array]
DENSE = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)
INDICES = [np.random.default_rng(2).integers(r, size=(8, 2)) for r in (5, 7)]


def build(seed: int = 0, rows: tuple[int, ...] = (5, 7)) -> sedq.DLRM:
    """A small random model, bottom 3-6-4, top 7-5-1, with biases large enough that every score depends on all of it."""
    rng = np.random.default_rng(seed)

    def layer(n: int, k: int) -> tuple[Array, Array]:
        return rng.normal(size=(n, k)).astype(np.float32) / 2, rng.normal(size=n).astype(np.float32)

    tables = [rng.normal(size=(r, 4)).astype(np.float32) for r in rows]
    width = 4 + len(rows) * (len(rows) + 1) // 2
    model = sedq.DLRM([layer(6, 3), layer(4, 6)], tables, [layer(5, width), layer(1, 5)], ["sum", "mean"][: len(rows)])
    return model.quantize((DENSE, INDICES[: len(rows)], None))


def scores(model: sedq.DLRM, **settings: Any) -> Array:
    return model(DENSE, INDICES, **settings)


@pytest.fixture
def model() -> sedq.DLRM:
    return build()


@pytest.fixture
def path(model: sedq.DLRM, tmp_path: Path) -> Path:
    model.save(tmp_path / "model.npz")
    return tmp_path / "model.npz"


def contents(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def header_of(arrays: Arrays) -> Any:
    return json.loads(arrays["header"].tobytes())


def write(path: Path, arrays: Arrays, header: Any = None) -> None:
    """Write arrays under a header that fits its digest; bytes stand as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    digest = np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
    np.savez(path, **arrays | {"header": np.frombuffer(text, np.uint8), "header_sha256": digest})


def forge(path: Path, arrays: Arrays) -> None:
    """Write changed arrays with digests made anew, so that only their meaning can be refused."""
    header = header_of(arrays)
    for name in header["arrays"]:
        a = arrays[name]
        header["arrays"][name] = {"shape": list(a.shape), "dtype": a.dtype.str, "sha256": _archive.digest(a)}
    write(path, arrays, header)


# ---- round trip


def test_round_trip(model: sedq.DLRM, path: Path) -> None:
    loaded = sedq.DLRM.load(path)
    assert repr(loaded) == "<DLRM quantized, 2 tables>"
    for check in ("off", "exact", "full"):
        np.testing.assert_array_equal(scores(loaded, check=check), scores(model))
    loaded.save(path.with_name("again"))  # no suffix is added
    assert path.with_name("again").read_bytes() == path.read_bytes()


def test_round_trip_of_the_packaged_model(tmp_path: Path) -> None:
    data = load_msweb()
    c, r = data.calibration, data.heldout.batch(0, 300)
    model = sedq.DLRM(data.bottom, data.tables, data.top, data.modes)
    model.quantize((c.dense, c.indices, c.offsets), include_last_offset=True)
    model.save(str(tmp_path / "m.npz"))
    loaded = sedq.DLRM.load(str(tmp_path / "m.npz"))
    want = model(r.dense, r.indices, r.offsets, include_last_offset=True)
    np.testing.assert_array_equal(loaded(r.dense, r.indices, r.offsets, include_last_offset=True), want)


@pytest.mark.parametrize("rows", [(), (5,)])
def test_round_trip_of_few_tables(tmp_path: Path, rows: tuple[int, ...]) -> None:
    model, indices = build(rows=rows), INDICES[: len(rows)]
    model.save(tmp_path / "m")
    np.testing.assert_array_equal(sedq.DLRM.load(tmp_path / "m")(DENSE, indices), model(DENSE, indices))


def test_the_header_says_format_version_and_arrays(path: Path) -> None:
    arrays = contents(path)
    header = header_of(arrays)
    assert (header["format"], header["version"]) == ("sedq-dlrm", 2)
    assert set(header["arrays"]) == set(arrays) - {"header", "header_sha256"}
    for name, entry in header["arrays"].items():
        assert (tuple(entry["shape"]), entry["dtype"]) == (arrays[name].shape, arrays[name].dtype.str)
        assert entry["sha256"] == _archive.digest(arrays[name])


# ---- damaged, foreign and forged files


def outcome(path: Path, want: Array) -> str:
    """What loading a file gives."""
    try:
        loaded = sedq.DLRM.load(path)
    except sedq.ModelFileError as error:
        return "refused" if str(path) in str(error) else f"refused without naming it: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "same" if np.array_equal(scores(loaded), want) else "other scores"


def test_altered_bytes_are_refused_or_do_not_matter(model: sedq.DLRM, path: Path) -> None:
    raw, want, struck = path.read_bytes(), scores(model), path.with_name("struck")
    directory = raw.index(b"PK\1\2")
    seen: Counter[str] = Counter()
    for position in [*range(0, len(raw), 43), *range(directory, directory + 60), *range(len(raw) - 22, len(raw))]:
        for mask in (255, 1):
            struck.write_bytes(raw[:position] + bytes([raw[position] ^ mask]) + raw[position + 1 :])
            seen[outcome(struck, want)] += 1
    assert set(seen) <= {"refused", "same"}, seen
    assert seen["refused"] > 200


def test_truncated_files_are_refused(model: sedq.DLRM, path: Path) -> None:
    raw, want, cut = path.read_bytes(), scores(model), path.with_name("cut")
    seen: Counter[str] = Counter()
    for length in [*range(8), *range(8, len(raw), 97), len(raw) - 1]:
        cut.write_bytes(raw[:length])
        seen[outcome(cut, want)] += 1
    assert set(seen) == {"refused"}, seen


def test_foreign_files_are_refused(model: sedq.DLRM, path: Path) -> None:
    np.savez(path.with_name("a.npz"), a=np.arange(3))
    np.save(path.with_name("a.npy"), np.arange(3))
    path.with_name("empty").touch()
    path.with_name("text").write_text("a model, honestly\n")
    path.with_name("pickle").write_bytes(pickle.dumps([model]))
    for name in ("a.npz", "a.npy", "empty", "text", "pickle"):
        assert outcome(path.with_name(name), scores(model)) == "refused", name


def test_what_can_not_be_read_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        sedq.DLRM.load(tmp_path / "nowhere")
    with pytest.raises(OSError, match=tmp_path.name):
        sedq.DLRM.load(tmp_path)
    for other in (None, 3):
        with pytest.raises(TypeError):
            sedq.DLRM.load(other)


class Trap:
    """Runs code when it is unpickled."""

    sprung = 0

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return spring, ()


def spring() -> object:
    Trap.sprung += 1
    return Trap()


@pytest.mark.parametrize("name", ["header", "header_sha256", "table.0.rows", "top.0.bias"])
def test_nothing_is_unpickled(path: Path, name: str) -> None:
    arrays = contents(path) | {name: np.array([Trap()], dtype=object)}
    np.savez(path, **arrays)
    with pytest.raises(sedq.ModelFileError, match=f"{path}: {name} is missing or damaged"):
        sedq.DLRM.load(path)
    assert Trap.sprung == 0


@pytest.mark.parametrize("name", ["header", "header_sha256", "table.1.rows", "top.1.weight", "bottom.0.bias"])
def test_missing_arrays(path: Path, name: str) -> None:
    arrays = contents(path)
    del arrays[name]
    np.savez(path, **arrays)
    with pytest.raises(sedq.ModelFileError, match=rf"{path}: {name} is missing"):
        sedq.DLRM.load(path)


def test_an_array_that_does_not_fit_its_digest(path: Path) -> None:
    arrays = contents(path)
    for name in header_of(arrays)["arrays"]:
        changed = arrays[name].copy()
        changed.view(np.uint8).reshape(-1)[0] ^= 1
        np.savez(path, **arrays | {name: changed})
        with pytest.raises(sedq.ModelFileError, match=f"{path}: {name} does not fit its digest"):
            sedq.DLRM.load(path)
        np.savez(path, **arrays | {name: arrays[name].reshape(-1, 1)})
        with pytest.raises(sedq.ModelFileError, match=f"{path}: {name} does not fit its digest"):
            sedq.DLRM.load(path)


def set_at(*keys: Any, to: Any) -> Callable[[Any], None]:
    def change(header: Any) -> None:
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = to

    return change


def drop(*keys: Any) -> Callable[[Any], None]:
    def change(header: Any) -> None:
        for key in keys[:-1]:
            header = header[key]
        del header[keys[-1]]

    return change


HEADERS: dict[str, Callable[[Any], None]] = {
    **{f"no {key}": drop(key) for key in ("format", "version", "arrays", "bottom", "top", "tables")},
    "other format": set_at("format", to="msweb"),
    "other version": set_at("version", to=3),
    "version before the first release": set_at("version", to=1),
    "version text": set_at("version", to="1"),
    "arrays None": set_at("arrays", to=None),
    "arrays empty": set_at("arrays", to={}),
    "array without digest": drop("arrays", "top.0.weight", "sha256"),
    "array of another shape": set_at("arrays", "top.0.weight", "shape", to=[1, 1]),
    "bottom a number": set_at("bottom", to=3),
    "layers None": set_at("top", to=[None, None]),
    "no bottom layers": set_at("bottom", to=[]),
    "no top layers": set_at("top", to=[]),
    "a bottom layer less": drop("bottom", 1),
    "a top layer less": drop("top", 1),
    "a table less": drop("tables", 1),
    "unknown layout": set_at("tables", 0, "layout", to="half"),
    "unknown mode": set_at("tables", 0, "mode", to="max"),
    "mode missing": drop("tables", 0, "mode"),
    "unknown bits": set_at("tables", 0, "bits", to=4),
    "dim beyond the rows": set_at("tables", 0, "dim", to=5),
    "dim missing": drop("tables", 0, "dim"),
    "padding beyond the rows": set_at("tables", 0, "padding_idx", to=5),
    "padding text": set_at("tables", 0, "padding_idx", to="1"),
    "locate 1": set_at("tables", 0, "locate", to=1),
    "parity 0": set_at("tables", 0, "parity", to=0),
    "blocks of none": set_at("tables", 0, "block", to=0),
    "blocks smaller": set_at("tables", 0, "block", to=2),
    "unknown encoding": set_at("bottom", 0, "encode", to=["mod3"]),
    "relu missing": drop("top", 0, "relu"),
    "input missing": set_at("bottom", 0, "input", to=None),
    "output missing": set_at("bottom", 0, "output", to=None),
    "output unlike the next input": set_at("bottom", 0, "output", "scale", to=3.5),
    "scale 0": set_at("bottom", 0, "input", "scale", to=0),
    "scale NaN": set_at("bottom", 0, "input", "scale", to=float("nan")),
    "scale text": set_at("bottom", 0, "input", "scale", to="1"),
    "scale list": set_at("bottom", 0, "input", "scale", to=[0.1]),
    "zero point": set_at("bottom", 0, "input", "zero_point", to=256),
    "zero point 0.5": set_at("bottom", 0, "input", "zero_point", to=0.5),
    "qparams of int8": set_at("bottom", 0, "input", to={"scale": 0.1, "zero_point": 0, "dtype": "int8"}),
    "qparams unknown": set_at("bottom", 0, "input", "step", to=1),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_make_no_sense(path: Path, case: str) -> None:
    arrays = contents(path)
    header = header_of(arrays)
    HEADERS[case](header)
    write(path, arrays, header)
    with pytest.raises(sedq.ModelFileError, match=str(path)):
        sedq.DLRM.load(path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"1", b"null", b"\xff\xfe\x00", b'"sedq-dlrm"'])
def test_headers_that_are_no_document(path: Path, text: bytes) -> None:
    write(path, contents(path), text)
    with pytest.raises(sedq.ModelFileError, match=str(path)):
        sedq.DLRM.load(path)


FORGED: dict[str, Callable[[Arrays], Arrays]] = {
    "weight of float32": lambda a: {"top.0.weight": a["top.0.weight"].astype(np.float32)},
    "weight of uint8": lambda a: {"top.0.weight": a["top.0.weight"].astype(np.uint8)},
    "weight turned": lambda a: {"top.0.weight": np.ascontiguousarray(a["top.0.weight"].T)},
    "weight empty": lambda a: {"top.0.weight": a["top.0.weight"][:, :0]},
    "scale negative": lambda a: {"top.0.scale": -a["top.0.scale"]},
    "scale NaN": lambda a: {"top.0.scale": a["top.0.scale"] * np.nan},
    "zero point 200": lambda a: {"top.0.zero_point": a["top.0.zero_point"] + 200},
    "zero point of float": lambda a: {"top.0.zero_point": a["top.0.zero_point"].astype(float)},
    "bias inf": lambda a: {"top.0.bias": a["top.0.bias"] + np.inf},
    "bias short": lambda a: {"top.0.bias": a["top.0.bias"][1:]},
    "bias text": lambda a: {"top.0.bias": a["top.0.bias"].astype(str)},
    "first layer narrower": lambda a: {"top.0.weight": a["top.0.weight"][:, 1:]},
    "second layer narrower": lambda a: {"bottom.1.weight": a["bottom.1.weight"][:, 1:]},
    "bottom narrower": lambda a: {k: a[k][1:] for k in a if k.startswith("bottom.1.")},
    "two logits": lambda a: {k: np.repeat(a[k], 2, axis=0) for k in a if k.startswith("top.1.")},
    "rows of float32": lambda a: {"table.0.rows": a["table.0.rows"].astype(np.float32)},
    "rows none": lambda a: {"table.0.rows": a["table.0.rows"][:0]},
    "rows flat": lambda a: {"table.0.rows": a["table.0.rows"][0]},
    "rows narrower": lambda a: {"table.0.rows": a["table.0.rows"][:, 1:]},
    "rows without codes": lambda a: {"table.0.rows": a["table.0.rows"][:, 4:]},
    "rows of float32, as wide": lambda a: {"table.0.rows": np.zeros((5, 3), np.float32)},
    "blocks narrower": lambda a: {"table.0.blocks": a["table.0.blocks"][:, 1:]},
    "rows NaN": lambda a: {"table.0.rows": a["table.0.rows"] | 255},
}


@pytest.mark.parametrize("case", FORGED)
def test_arrays_that_make_no_sense(path: Path, case: str) -> None:
    arrays = contents(path)
    forge(path, arrays | FORGED[case](arrays))
    with pytest.raises(sedq.ModelFileError, match=str(path)):
        sedq.DLRM.load(path)


def test_a_forged_file_that_makes_sense_is_loaded(model: sedq.DLRM, path: Path) -> None:
    arrays = contents(path)  # the tests above would pass on a loader that refuses everything
    forge(path, arrays)
    np.testing.assert_array_equal(scores(sedq.DLRM.load(path)), scores(model))
    forge(path, arrays | {"top.1.bias": arrays["top.1.bias"] + np.float32(0.5)})
    assert not np.array_equal(scores(sedq.DLRM.load(path)), scores(model))

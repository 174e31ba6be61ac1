"""Saving and keeping models: atomic replacement, rows restored from the file, pickle and deepcopy."""

from __future__ import annotations

import copy
import os
import pickle
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq import faults
from sedq.commands import _demo
from sedq.datasets import load_msweb
from sedq.files._archive import Writer
from sedq.files._replacing import replacing

Array = NDArray[Any]
REQUESTS = load_msweb().heldout.batch(0, 20)
ROW = int(REQUESTS.indices[0][0])  # of table 0, read by the first request


@pytest.fixture
def model() -> sedq.DLRM:
    return _demo.build(load_msweb())


def scores(model: sedq.DLRM, **settings: Any) -> Array:
    return model(REQUESTS.dense, REQUESTS.indices, REQUESTS.offsets, include_last_offset=True, **settings)


def smash(packed: sedq.PackedWeights) -> None:
    """Corrupt weights beyond healing."""
    packed._source = None
    for n in range(4):
        for k in range(4):
            faults.flip_weight_bit(packed, n, k, 6)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


# ---- writing


def test_an_existing_file_is_replaced(model: sedq.DLRM, tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    path.write_text("what was here")
    model.save(path)
    np.testing.assert_array_equal(scores(sedq.DLRM.load(path)), scores(model))
    assert os.listdir(tmp_path) == ["model.npz"]


def corrupt_weights(model: sedq.DLRM, patch: pytest.MonkeyPatch) -> None:
    smash(model.top[0].packed)


def corrupt_row(model: sedq.DLRM, patch: pytest.MonkeyPatch) -> None:
    model.bags[3].table.source = None
    faults.flip_row_bit(model.bags[3], 5, 3)


def full_disk(model: sedq.DLRM, patch: pytest.MonkeyPatch) -> None:
    def array(self: Writer, name: str, a: Array) -> None:
        if name.startswith("top"):
            raise OSError(28, "No space left on device")
        self.pieces(name, a.dtype, a.shape, [a])

    patch.setattr(Writer, "array", array)


def no_replace(model: sedq.DLRM, patch: pytest.MonkeyPatch) -> None:
    def replace(source: str, target: str) -> None:
        raise PermissionError(13, "Permission denied")

    patch.setattr(os, "replace", replace)


@pytest.mark.parametrize(
    ("fail", "error", "message"),
    [
        (corrupt_weights, sedq.SoftErrorDetected, "top.0"),
        (corrupt_row, sedq.SoftErrorDetected, "rows"),
        (full_disk, OSError, "No space"),
        (no_replace, PermissionError, "denied"),
    ],
)
def test_a_failed_save_keeps_the_old_file(
    model: sedq.DLRM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[..., None], error: type[Exception],
    message: str,
) -> None:  # fmt: skip
    path = tmp_path / "model.npz"
    model.save(path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        fail(model, patch)
        with pytest.raises(error, match=message):
            model.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.npz"]


def test_a_corrupted_part_is_named(model: sedq.DLRM, tmp_path: Path) -> None:
    model.bags[3].table.source = None
    faults.flip_row_bit(model.bags[3], 5, 3)
    with pytest.raises(sedq.SoftErrorDetected, match=r"table.3.*\[5\]"):
        model.save(tmp_path / "m")


def test_what_can_be_healed_is_saved_healed(model: sedq.DLRM, tmp_path: Path) -> None:
    want = scores(model)
    faults.flip_weight_bit(model.bottom[1].packed, 3, 4, 6)
    faults.flip_row_bit(model.bags[0], ROW, 6)
    model.save(tmp_path / "m")
    np.testing.assert_array_equal(scores(sedq.DLRM.load(tmp_path / "m"), check="off"), want)


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(model: sedq.DLRM, tmp_path: Path, mask: int) -> None:
    with umask(mask):
        model.save(tmp_path / "m")
        assert os.umask(mask) == mask
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o666 & ~mask


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o644])
def test_an_existing_file_keeps_its_permissions(model: sedq.DLRM, tmp_path: Path, mode: int) -> None:
    path = tmp_path / "m"
    path.touch()
    path.chmod(mode)
    seen = []
    with umask(0o022), replacing(path) as stream:
        stream.write(b"new")
        seen = [stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()]
    assert seen == [mode, mode]  # while it is written too
    assert (stat.S_IMODE(path.stat().st_mode), path.read_bytes()) == (mode, b"new")


@pytest.mark.skipif(os.name != "posix", reason="links need a privilege elsewhere")
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed(model: sedq.DLRM, tmp_path: Path, exists: bool) -> None:
    target, link = tmp_path / "there" / "model.npz", tmp_path / "link"
    target.parent.mkdir()
    if exists:
        target.write_text("what was here")
    link.symlink_to(Path("there") / "model.npz")
    model.save(link)
    assert link.is_symlink()
    np.testing.assert_array_equal(scores(sedq.DLRM.load(target)), scores(model))
    assert os.listdir(target.parent) == ["model.npz"]
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(OSError, match="link"):
        model.save(link)
    assert link.is_symlink()


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="names of open files are those of Linux")
def test_a_link_to_a_pipe_is_a_device(tmp_path: Path) -> None:
    ends = os.pipe()
    (tmp_path / "link").symlink_to(f"/proc/self/fd/{ends[1]}")
    with pytest.raises(ValueError, match="link: got a device"), replacing(tmp_path / "link"):
        pass
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("name", ["", "no/such/folder"])
def test_where_nothing_can_be_written(model: sedq.DLRM, tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match=tmp_path.name):
        model.save(tmp_path / name)
    assert os.listdir(tmp_path) == []


# ---- rows come back from the file


@pytest.fixture
def loaded(model: sedq.DLRM, tmp_path: Path) -> sedq.DLRM:
    model.save(tmp_path / "model.npz")
    return sedq.DLRM.load(tmp_path / "model.npz")


def test_rows_are_restored_from_the_file(loaded: sedq.DLRM, model: sedq.DLRM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")  # wherever the process has gone meanwhile
    for table, bag in enumerate(loaded.bags):
        faults.flip_row_bit(bag, int(REQUESTS.indices[table][0]), 8 * (bag.shape[1] + 3) + 6)
    assert not np.array_equal(scores(loaded, check="off"), scores(model))
    with sedq.monitor() as m:
        np.testing.assert_array_equal(scores(loaded), scores(model))
    assert {(e.operator, e.rung, e.verdict) for e in m.events} == {
        (f"table.{t}", "heal", "memory") for t in range(len(loaded.bags))
    }
    assert [bag.bad_rows() for bag in loaded.bags] == [[]] * len(loaded.bags)


def test_a_relative_path_is_remembered_in_full(model: sedq.DLRM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model.save("m")
    loaded = sedq.DLRM.load("m")
    monkeypatch.chdir("/")
    faults.flip_row_bit(loaded.bags[0], ROW, 6)
    np.testing.assert_array_equal(scores(loaded), scores(model))


def replace_tables(path: Path, change: Callable[[Array], Array]) -> None:
    """The path now holds another model that was quantised from other tables."""
    data = load_msweb()
    tables = [change(t) for t in data.tables]
    c = data.calibration
    other = sedq.DLRM(data.bottom, tables, data.top, data.modes)
    other.quantize((c.dense, c.indices, c.offsets), include_last_offset=True).save(path)


def other_model(path: Path) -> None:
    replace_tables(path, lambda t: t[::-1] * np.float32(1.5))


def model_of_equal_digests(path: Path) -> None:
    """The digest of a row is that of its codes in any order."""
    replace_tables(path, lambda t: t[:, ::-1])


def smaller_model(path: Path) -> None:
    one = np.ones((1, 1), np.float32)
    layer = [(one, one[0])]
    sedq.DLRM(layer, [], layer).quantize((one, [], None)).save(path)


def alter(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 16
    path.write_bytes(raw)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def fused(model: sedq.DLRM) -> Array:
    return model.bags[0].to_fused()


@pytest.mark.parametrize("change", [Path.unlink, alter, other_model, model_of_equal_digests, smaller_model, empty])
@pytest.mark.parametrize("call", [scores, pickle.dumps, fused])
def test_without_the_file_a_corrupted_row_is_an_error_and_never_another_score(
    loaded: sedq.DLRM, model: sedq.DLRM, tmp_path: Path, change: Callable[[Path], None], call: Callable[..., Any]
) -> None:
    change(tmp_path / "model.npz")
    np.testing.assert_array_equal(scores(loaded), scores(model))  # the file is only needed for repair
    faults.flip_row_bit(loaded.bags[0], ROW, 6)
    with sedq.monitor() as m, pytest.raises(sedq.SoftErrorDetected, match=r"model\.npz"):
        call(loaded)
    if call is scores:
        assert {(e.operator, e.rung, e.verdict) for e in m.events} == {("table.0", "raise", "memory")}


# ---- copies

COPIES: list[Callable[[Any], Any]] = [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
either_copy = pytest.mark.parametrize("duplicate", COPIES, ids=["deepcopy", "pickle"])


@either_copy
@pytest.mark.parametrize("kind", ["quantised", "loaded", "float"])
def test_copies_of_a_model(model: sedq.DLRM, loaded: sedq.DLRM, kind: str, duplicate: Callable[[Any], Any]) -> None:
    data = load_msweb()
    original = {"quantised": model, "loaded": loaded, "float": sedq.DLRM(data.bottom, data.tables, data.top)}[kind]
    twin = duplicate(original)
    assert repr(twin) == repr(original)
    if kind == "float":
        r = (REQUESTS.dense, REQUESTS.indices, REQUESTS.offsets, True)
        np.testing.assert_array_equal(twin.predict_float(*r), original.predict_float(*r))
        return
    want = scores(original)
    faults.flip_weight_bit(original.top[1].packed, 3, 4, 6)
    faults.flip_row_bit(original.bags[0], ROW, 6)
    with sedq.monitor() as m:
        np.testing.assert_array_equal(scores(twin, check="full"), want)  # shares no memory with the struck one
    assert m.detections == 0
    faults.flip_row_bit(twin.bags[0], ROW, 6)
    np.testing.assert_array_equal(scores(twin), want)  # and has its source


@either_copy
def test_copies_are_healed_and_never_of_corrupted_weights(model: sedq.DLRM, duplicate: Callable[[Any], Any]) -> None:
    want = scores(model)
    faults.flip_weight_bit(model.top[1].packed, 3, 4, 6)
    faults.flip_row_bit(model.bags[0], ROW, 6)
    np.testing.assert_array_equal(scores(duplicate(model), check="off"), want)
    smash(model.top[1].packed)
    with pytest.raises(sedq.SoftErrorDetected, match="can't be copied"):
        duplicate(model)


def detected() -> sedq.Monitor:
    packed = sedq.pack_weights(np.ones((3, 4), np.int8))
    with sedq.monitor() as m, faults.accumulator_fault():
        sedq.matmul_integer(np.ones((1, 4), np.uint8), packed)
    return m


OBJECTS: dict[str, Callable[[], Any]] = {
    "QParams": lambda: sedq.QParams(0.5, 3),
    "QParams per channel": lambda: sedq.QParams([0.5, 0.25], [3, 4], "int8"),
    "Settings": sedq.get_config,
    "WeightsReport": lambda: sedq.pack_weights(np.ones((3, 4), np.int8)).verify(),
    "Event": lambda: detected().events[0],
    "MinMaxObserver": lambda: sedq.MinMaxObserver().observe([1.0, 2.0]),
    "SoftErrorDetected": lambda: sedq.SoftErrorDetected("it", detected().events),
    "ModelFileError": lambda: sedq.ModelFileError("it"),
    "PackedWeights": lambda: sedq.pack_weights(np.ones((3, 4), np.int8)),
    "EmbeddingBag": lambda: sedq.EmbeddingBag.from_float(np.ones((3, 4)), mode="mean"),
}


@either_copy
@pytest.mark.parametrize("name", OBJECTS)
def test_copies_of_values(name: str, duplicate: Callable[[Any], Any]) -> None:
    value = OBJECTS[name]()
    twin = duplicate(value)
    assert type(twin) is type(value)
    assert repr(twin) == repr(value)


@either_copy
def test_copies_of_a_monitor(duplicate: Callable[[Any], Any]) -> None:
    original = detected()
    twin = duplicate(original)
    assert (twin.checks, twin.detections, twin.events) == (original.checks, original.detections, original.events)
    assert twin.events.maxlen == original.max_events


@either_copy
def test_copies_of_errors_and_layers(model: sedq.DLRM, duplicate: Callable[[Any], Any]) -> None:
    event = detected().events[0]
    error = duplicate(sedq.SoftErrorDetected("it", [event]))
    assert (str(error), error.events) == ("it", (event,))
    assert duplicate(sedq.QParams(0.5, 3)) == sedq.QParams(0.5, 3)
    x = REQUESTS.dense
    np.testing.assert_array_equal(duplicate(model.bottom[0])(x), model.bottom[0](x))
    i, o = REQUESTS.indices[2], REQUESTS.offsets[2]
    bag = model.bags[2]
    np.testing.assert_array_equal(duplicate(bag)(i, o, include_last_offset=True), bag(i, o, include_last_offset=True))
    assert duplicate(bag).mode == bag.mode

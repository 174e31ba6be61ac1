"""The command line: exit statuses, messages, and the JSON file."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sedq
from sedq import _info
from sedq.commands import _demo, _main
from sedq.datasets import load_msweb


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration on few requests."""
    data = load_msweb()
    part = dataclasses.replace(data, heldout=data.heldout.batch(0, 160))
    monkeypatch.setattr(_demo, "load_msweb", lambda: part)
    monkeypatch.setattr(_demo, "TIMED_REPEATS", 1)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration must not run."""

    def run(**_: Any) -> None:
        raise AssertionError("the demonstration ran")

    monkeypatch.setattr(_demo, "run", run)


def test_demo_prints_the_table_and_writes_the_document(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "demo.json"
    path.write_text("what was here")
    assert _main.main(["demo", "--json", str(path), "--seed", "3"]) == 0
    result = json.loads(path.read_text())
    out, err = capsys.readouterr()
    assert out == _demo.table(result) + "\n"
    assert "injecting" in err
    assert (result["seed"], result["requests"]) == (3, 160)
    assert os.listdir(tmp_path) == ["demo.json"]


def test_demo_writes_no_file_unasked(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _main.main(["demo"]) == 0
    assert os.listdir(tmp_path) == []
    assert "no consequential fault missed, no false alarm" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "value"), [("missed", 1), ("false_alarms", 1)])
def test_demo_fails_if_a_fault_was_missed_or_an_alarm_false(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str, value: int
) -> None:
    result = _demo.run()
    (result["faults"]["all"] if key == "missed" else result["fault_free"])[key] = value
    monkeypatch.setattr(_demo, "run", lambda **_: result)
    assert _main.main(["demo", "--json", str(tmp_path / "d.json")]) == 1
    assert json.loads((tmp_path / "d.json").read_text()) == result
    assert ("MISSED" in capsys.readouterr().out) == (key == "missed")


def test_demo_fails_if_the_checks_are_off(
    small: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = _demo._call
    monkeypatch.setattr(_demo, "_call", lambda model, r, check, **_: honest(model, r, "off"))
    assert _main.main(["demo"]) == 1
    assert "CONSEQUENTIAL FAULTS MISSED" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [[], ["dance"], ["demo", "extra"], ["demo", "--seed"], ["demo", "--seed", "x"], ["demo", "--json"], ["--seed", "1"]],
    ids=str,
)
def test_wrong_arguments_end_with_2(never: None, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        _main.main(arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: sedq" in err


@pytest.mark.parametrize("name", ["", "no/such/folder/d.json", "a-file/d.json", "a-folder"])
def test_a_json_file_that_can_not_be_is_refused_before_the_run(
    never: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "a-folder").mkdir()
    assert _main.main(["demo", "--json", str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sedq: --json: got ")
    assert str(tmp_path / name) in err
    assert err.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files here")
def test_a_device_is_not_replaced(never: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe"  # in place of /dev/null, which a test had better not risk
    os.mkfifo(pipe)
    assert _main.main(["demo", "--json", str(pipe)]) == 2
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert "--json" in capsys.readouterr().err


def test_a_negative_seed_is_refused_before_the_run(never: None, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = _main.main(["demo", "--seed", "-1"])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert "--seed" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "function"), [(os, "open"), (os, "replace"), (json, "dumps")])
def test_a_file_that_can_not_be_written_ends_with_2(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: Any,
    function: str,
) -> None:  # fmt: skip
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", "d.json")

    path = tmp_path / "d.json"
    path.write_text("what was here")
    monkeypatch.setattr(module, function, refuse)
    assert _main.main(["demo", "--json", str(path)]) == 2
    assert path.read_text() == "what was here"
    assert os.listdir(tmp_path) == ["d.json"]
    assert capsys.readouterr().err.splitlines()[-1] == "sedq: [Errno 13] Permission denied: 'd.json'"


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_are_those_of_any_new_file(small: None, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        assert _main.main(["demo", "--json", str(tmp_path / "d.json")]) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "d.json").stat().st_mode) == 0o666 & ~mask


def test_info_says_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main.main(["info"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    said = dict(line.split(": ", 1) for line in out.splitlines())
    assert said == {name: str(value) for name, value in _info.versions().items()}
    assert said["sedq"] == sedq.__version__
    sedq.show_versions()
    assert capsys.readouterr().out == out


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        _main.main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "demo" in out
    assert "info" in out


def script() -> str:
    """The installed console script."""
    found = shutil.which("sedq", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("the console script is not installed beside this interpreter")
    return found


def test_the_installed_script_demonstrates(tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    ran = subprocess.run([script(), "demo", "--json", str(path)], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(path.read_text())
    assert ran.stdout == _demo.table(result) + "\n"
    assert result["requests"] == 13812
    assert result["fault_free"] == {"checks": 13812 * 14, "false_alarms": 0}
    assert (result["faults"]["all"]["injected"], result["faults"]["all"]["missed"]) == (864, 0)
    assert {name: round(value, 4) for name, value in result["auc"].items()} == {
        "float": 0.9108, "int8_unprotected": 0.9106, "int8_protected": 0.9106,
    }  # fmt: skip


def test_the_installed_script_refuses(tmp_path: Path) -> None:
    ran = subprocess.run(
        [script(), "demo", "--json", str(tmp_path)], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("sedq: --json: got ")

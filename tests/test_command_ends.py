"""How commands end: interrupted, unread, refused before they begin; and what is in their files by then."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sedq
from helpers.campaigns import product
from sedq import faults
from sedq.commands import _calibrate as calibrate
from sedq.commands import _campaign as campaign
from sedq.commands import _demo, _main
from sedq.commands import _live as live
from sedq.faults._log import Log
from sedq.faults._worker import Worker
from sedq.faults.live import LiveResult

pytestmark = pytest.mark.any_isa


def interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def packaged(batch: int) -> tuple[Any, list[Any]]:
    """A product in place of the packaged model, which takes longer to make."""
    spec = product().spec
    return spec.target, spec.inputs


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "_packaged", packaged)


CAMPAIGN = ["campaign", "--trials", "60", "--goal", "0.9"]


# ---- interrupts


@pytest.mark.parametrize(
    ("module", "function", "arguments", "said"),
    [
        (_demo, "run", ["demo"], ""),
        (calibrate, "calibrate_thresholds", ["calibrate"], ""),
        (sedq.files, "protect_file", ["scrub", "--protect", "table.npy"], ""),
        (sedq.files, "scrub_file", ["scrub", "table.npy"], ""),
        (Worker, "trial", CAMPAIGN, "; no log was kept"),
        (live.live, "run", ["campaign", "--live"], "; no log was kept"),
        (live.live, "run", ["campaign", "--live", "--resume", "x"], "; go on with --resume x"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_an_interrupt_ends_any_command_alike(
    module: Any, function: str, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(module, function, interrupt)
    assert _main.main(arguments) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == f"sedq: interrupted{said}"


def test_an_interrupted_campaign_has_its_trials_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log, honest = tmp_path / "run.jsonl", Worker.trial

    def trial(self: Worker, number: int) -> Any:
        return interrupt() if number == 7 else honest(self, number)

    monkeypatch.setattr(Worker, "trial", trial)
    assert _main.main([*CAMPAIGN, "--resume", str(log)]) == 130
    assert capsys.readouterr().err.endswith(f"sedq: interrupted; go on with --resume {log}\n")
    assert [json.loads(line)["trial"] for line in log.read_bytes().splitlines()[1:]] == list(range(7))
    monkeypatch.setattr(Worker, "trial", honest)
    assert _main.main([*CAMPAIGN, "--resume", str(log)]) == 0
    assert len(log.read_bytes().splitlines()) == 61


def logged(log: Path) -> set[int]:
    return {json.loads(line)["trial"] for line in log.read_bytes().splitlines()[1:]}


@pytest.mark.parametrize(
    ("where", "function", "chunk"),
    [(Worker, "require_intact", 0), (Log, "_append", 0), (Log, "add", 0), (Log, "_append", 10), (Log, "add", 10)],
)
def test_an_interrupt_between_trials_loses_none(
    where: type, function: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, honest, calls = tmp_path / "run.jsonl", getattr(where, function), [0]
    ended: list[int] = []
    trial = Worker.trial

    def second(*arguments: Any) -> Any:
        calls[0] += 1
        return interrupt() if calls[0] == 2 and ended else honest(*arguments)

    monkeypatch.setattr(where, function, second)
    monkeypatch.setattr(Worker, "trial", lambda self, i: [trial(self, i), ended.append(i)][0])
    monkeypatch.setattr("sedq.faults._campaign.time", Clock())
    monkeypatch.setattr("sedq.faults._campaign.PAUSE", 10)
    with ThreadPoolExecutor(1) as executor, pytest.raises(KeyboardInterrupt):
        product().run(60, executor if chunk else None, resume=log, chunk=chunk or 60)
    assert logged(log) == set(ended) != set()


class Clock:
    """Is a second later whenever it is asked."""

    now = 0

    def monotonic(self) -> int:
        self.now += 1
        return self.now


def test_a_log_is_written_to_while_a_chunk_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, honest, seen = tmp_path / "run.jsonl", Worker.trial, []

    def trial(self: Worker, number: int) -> Any:
        seen.append(log.read_bytes().count(b"\n") - 1)
        return honest(self, number)

    monkeypatch.setattr(Worker, "trial", trial)
    monkeypatch.setattr("sedq.faults._campaign.time", Clock())
    monkeypatch.setattr("sedq.faults._campaign.PAUSE", 10)
    product().run(40, resume=log)
    assert seen == [i // 9 * 9 for i in range(40)]


class Interrupted(ThreadPoolExecutor):
    """Is interrupted when it is given its third chunk."""

    given = 0

    def submit(self, *arguments: Any, **options: Any) -> Future[Any]:
        self.given += 1
        return interrupt() if self.given == 3 else super().submit(*arguments, **options)


def test_chunks_that_workers_have_begun_are_logged_at_an_interrupt(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    with Interrupted(2) as executor, pytest.raises(KeyboardInterrupt):
        product().run(60, executor, resume=log, chunk=10)
    assert logged(log) == set(range(20))


WITH_WORKERS = """
import sys
sys.path.insert(0, {folder!r})
import test_command_ends as tests
tests.campaign._packaged = tests.packaged
sys.exit(tests._main.main([*tests.CAMPAIGN, "--trials", "100000", "--workers", "2", "--resume", {log!r}]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_workers_say_nothing_of_an_interrupt(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    script = WITH_WORKERS.format(folder=str(Path(__file__).parent), log=str(log))
    run = subprocess.Popen(
        [sys.executable, "-P", "-c", script],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        until = time.monotonic() + 60
        while (not log.exists() or log.read_bytes().count(b"\n") < 50) and time.monotonic() < until:
            time.sleep(0.02)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does
        _, err = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 130
    assert "Traceback" not in err
    assert err.endswith(f"sedq: interrupted; go on with --resume {log}\n")


class Asking:
    """In place of a campaign: asks a worker what it does about an interrupt."""

    def run(self, trials: int, *, executor: Executor, **_: Any) -> Any:
        return executor.submit(signal.getsignal, signal.SIGINT).result()


def test_an_interrupt_is_not_for_workers() -> None:
    options = argparse.Namespace(trials=1, workers=2, resume=None)
    assert campaign._results(Asking(), options) == signal.SIG_IGN  # type: ignore[arg-type]


# ---- output that nobody reads


class Closed:
    """Standard output whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("command", ["demo", "calibrate", "campaign", "live"])
def test_files_are_written_before_anything_is_printed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.json"
    arguments = {
        "demo": ["demo"],
        "calibrate": ["calibrate", "--save", str(tmp_path / "saved.json")],
        "campaign": CAMPAIGN,
        "live": ["campaign", "--live"],
    }[command]
    monkeypatch.setattr(_demo, "run", lambda **_: {"what": "was found"})
    monkeypatch.setattr(_demo, "table", lambda _: "a table")
    monkeypatch.setattr(LiveResult, "table", lambda _: "a table")
    monkeypatch.setattr(live, "_result", lambda _: LiveResult({}, ()))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Closed())
        assert _main.main([*arguments, "--json", str(path)]) == 141
    assert json.loads(path.read_text())
    assert (tmp_path / "saved.json").exists() == (command == "calibrate")
    assert "sedq: " not in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="pipes are those of POSIX")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_a_quiet_end(tmp_path: Path, unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-P", "-c", "import sys; from sedq import commands; sys.exit(commands.main())", "info"]
    try:
        ran = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path, env=os.environ | {"PYTHONUNBUFFERED": unbuffered}
        )
    finally:
        os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, b"")


class Full:
    """Standard error on a disc that is full."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    flush = Closed.flush

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Full(), None], ids=["full", "closed"])
def test_messages_that_cannot_be_written_are_no_verdict(
    stream: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.npy"
    np.save(path, sedq.EmbeddingBag.from_float(np.ones((100, 8), dtype=np.float32)).to_fused())
    sedq.files.protect_file(path)
    monkeypatch.setattr(sys, "stderr", stream)
    ends = [_main.main(a) for a in (["scrub", str(path)], ["scrub", "nothing.npy"], CAMPAIGN, [*CAMPAIGN, "--seed", "-1"])]
    monkeypatch.setattr(Worker, "trial", interrupt)
    assert [*ends, _main.main(CAMPAIGN)] == [0, 2, 0, 2, 130]
    assert sys.stderr is stream


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_the_end_of_the_interpreter_is_no_verdict_either(tmp_path: Path) -> None:
    script = "import sys; from sedq import commands; sys.exit(commands.main(['scrub', 'nothing.npy']))"
    for unbuffered in ("", "1"):
        with open("/dev/full", "w") as full:
            environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
            ran = subprocess.run([sys.executable, "-P", "-c", script], stderr=full, cwd=tmp_path, env=environment)
        assert ran.returncode == 2


def test_a_defect_is_no_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("what")

    monkeypatch.setattr(sedq.files, "scrub_file", fail)
    assert _main.main(["scrub", "table.npy"]) == 2  # 1 says that it is corrupted
    assert "KeyError: 'what'" in capsys.readouterr().err


# ---- files that can't be written


@pytest.mark.parametrize(
    ("command", "option"),
    [("demo", "json"), ("calibrate", "save"), ("calibrate", "json"), ("campaign", "json"), ("campaign", "report"),
     ("campaign", "resume"), ("scrub", "protect")],
)  # fmt: skip
def test_a_directory_that_is_not_writable_is_seen_before_the_run(
    command: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # permissions mean nothing to a superuser
    for module, name in (
        (_demo, "run"),
        (calibrate, "calibrate_thresholds"),
        (faults.Campaign, "run"),
        (sedq.files, "protect_file"),
    ):
        monkeypatch.setattr(module, name, interrupt)
    assert _main.main([command, f"--{option}", str(tmp_path / "file")]) == 2
    name = "file.sedq" if command == "scrub" else "file"
    message = f"--{option}: got {tmp_path / name}, expected a file in a directory that may be written to"
    assert capsys.readouterr().err == f"sedq: {message}\n"


@pytest.mark.parametrize("function", ["open", "replace"])
def test_an_error_has_the_name_of_the_file_that_was_asked_for(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Any, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, function, refuse)
    with pytest.raises(OSError, match=r"Read-only file system: '.*/figures.json'$") as caught:
        product().run(5).to_json(tmp_path / "figures.json")
    assert caught.value.filename == str(tmp_path / "figures.json")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["same", "spelling", "symlink", "hardlink"])
def test_two_options_do_not_name_one_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, name in ((calibrate, "calibrate_thresholds"), (faults.Campaign, "run"), (faults.Campaign, "__init__")):
        monkeypatch.setattr(module, name, interrupt)
    first, second = tmp_path / "x", tmp_path / ("x" if kind == "same" else "y")
    if kind == "spelling":
        (tmp_path / "folder").mkdir()
        second = tmp_path / "folder" / ".." / "x"
    elif kind == "symlink":
        second.symlink_to(first)
    elif kind == "hardlink":
        first.write_bytes(b"what was here")
        os.link(first, second)
    for command, *options in (
        ("campaign", "resume", "json"),
        ("campaign", "resume", "report"),
        ("campaign", "report", "json"),
        ("campaign", "model", "json"),
        ("calibrate", "save", "json"),
        ("calibrate", "requests", "save"),
    ):
        pair = zip(options, (first, second), strict=True)
        assert _main.main([command, *(str(word) for option, path in pair for word in (f"--{option}", path))]) == 2
        assert f"expected another file than that of --{options[0]}" in capsys.readouterr().err


# ---- headers of arrays


def test_a_damaged_header_is_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my table.npy"
    np.save(path, sedq.EmbeddingBag.from_float(np.ones((100, 8), dtype=np.float32)).to_fused())
    sedq.files.protect_file(path)
    sound = path.read_bytes()
    ends = set()
    for place in range(0, 128, 3):
        for bit in (0, 6):
            path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << bit]) + sound[place + 1 :])
            ends.add(_main.main(["scrub", str(path)]))
            err = capsys.readouterr().err
            assert err.count("\n") <= 1
            assert err == "" or err.startswith(f"sedq: {path}")
    path.write_bytes(sound[:60] + bytes([sound[60] ^ 1]) + sound[61:])
    assert _main.main(["scrub", str(path)]) == 2
    assert f"sedq: {path}: not a table, or a truncated one (" in capsys.readouterr().err
    assert 2 in ends

"""Command line: ``sedq demo``, ``sedq calibrate``, ``sedq campaign``, ``sedq scrub`` and ``sedq info``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any, TextIO, cast

from sedq import _info, files
from sedq._progress import progress_bar
from sedq.commands import _calibrate as calibrate
from sedq.commands import _campaign as campaign
from sedq.commands import _demo as demo
from sedq.files._replacing import check_target, replacing
from sedq.files._scrub import SUFFIX

__all__ = ["main"]

INTERRUPTED, UNREAD = 130, 141  # what a shell makes of SIGINT and SIGPIPE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sedq", description="Quantised inference with soft-error detection built in.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "demo",
        help="answer real requests while faults are injected",
        description="Answer the packaged held-out requests with the packaged model, without faults and with, unprotected "
        "and protected. Exit status 1 if a consequential fault was missed or a false alarm raised.",
    )
    run.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    run.add_argument("--seed", type=int, default=0, help="of the faults (default 0)")
    campaign.add_parser(commands)
    calibrate.add_parser(commands)
    look = commands.add_parser(
        "scrub",
        help="look for corruption in the file of a table or a model",
        description="Compare every row of a table file, or every array of a model file, with its digest. A table needs the "
        "companion that --protect makes of it. Exit status 0 if all is intact, 1 if something is corrupted, 2 for wrong "
        "arguments or a file that can't be looked over, 3 if all that was corrupted has been repaired.",
    )
    look.add_argument("file", type=Path, help="a model, or a table: fused rows as numpy.save writes them")
    what = look.add_mutually_exclusive_group()
    what.add_argument("--repair", action="store_true", help="write restored rows into the table file")
    what.add_argument("--protect", action="store_true", help="make the companion FILE.sedq of a table that is intact now")
    rebuild = "make locating sums and parity of rows anew, where two witnesses confirm the rows"
    look.add_argument("--rebuild", type=int, nargs="+", metavar="ROW", default=(), help=rebuild)
    look.add_argument("--bits", type=int, help="of a code, with --protect (default 8)")
    look.add_argument("--layout", help="torch, half or tbe, with --protect (default torch)")
    look.add_argument("--dim", type=int, help="columns, with --protect, where the bytes of a row don't say")
    look.add_argument("--parity", type=int, metavar="G", help="rows of a parity group, with --protect (default 64)")
    force = "with --protect, replace a companion that does not agree with the table"
    look.add_argument("--force", action="store_true", default=None, help=force)
    look.add_argument("--quiet", action="store_true", help="no progress bar")
    commands.add_parser("info", help="versions, instruction sets, threads and CPU")
    return parser


def _demo(options: argparse.Namespace) -> int:
    check_target("--json", options.json)
    if options.seed < 0:
        raise ValueError(f"--seed: got {options.seed}, expected 0 or more")
    result = demo.run(seed=options.seed, progress=sys.stderr)
    if options.json is not None:
        with replacing(options.json) as stream:
            stream.write((json.dumps(result, indent=2) + "\n").encode())
    print(demo.table(result))
    return 0 if demo.passed(result) else 1


def _scrub(options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name in ("bits", "layout", "dim", "parity", "force")}
    kept = {name: value for name, value in given.items() if value is not None}
    if kept and not options.protect:
        name, value = next(iter(kept.items()))
        raise ValueError(f"--{name}: got {value!r}, expected it with --protect alone: a companion says what its table is")
    if options.protect and options.rebuild:
        raise ValueError(
            "--rebuild: got rows with --protect, which makes the redundancy of all rows; expected one of the two"
        )
    if options.protect:
        check_target("--protect", Path(f"{options.file}{SUFFIX}"))
    silent = options.quiet or not sys.stderr.isatty()
    with nullcontext() if silent else progress_bar() as progress:
        if options.protect:
            made = files.protect_file(options.file, **kept, progress=progress)
        else:
            report = files.scrub_file(options.file, repair=options.repair, rebuild=options.rebuild, progress=progress)
    if options.protect:
        print(f"{made}: {made.stat().st_size} bytes")
        return 0
    print(report)
    return 1 if report.left else 3 if report.found else 0


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    commands = {"demo": _demo, "campaign": campaign.run, "calibrate": calibrate.run, "scrub": _scrub}
    try:
        if options.command != "info":
            return commands[options.command](options)
        _info.show_versions()
    except KeyboardInterrupt:
        print(f"\nsedq: interrupted{campaign.kept(options)}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        print(f"sedq: {error}", file=sys.stderr)
        return 2
    except Exception:  # a defect of sedq: 1 would say something of the model or the file
        traceback.print_exc()
        return 2
    return 0


def _give_up(stream: TextIO | None) -> None:
    """Drop what can't be written, which the interpreter would try again at its end."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class _Messages:
    """Standard error, on which what can't be written is lost: it says nothing of a result."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._losing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._losing():
            self._stream.flush()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # nobody looks
            raise
        except OSError:
            _give_up(self._stream)


@contextmanager
def _messages() -> Iterator[None]:
    """Let standard error be what can be written to, though it is closed or full."""
    with ExitStack() as stack:
        given = sys.stderr
        if given is None:
            given = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(redirect_stderr(cast(TextIO, _Messages(given))))
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        Instead of ``sys.argv[1:]``.

    Returns
    -------
    int
        0 if all went well; 1 if a demonstration or a calibration failed or a file is corrupted; 2 for wrong arguments or an
        invalid run; 3 if what was corrupted in a file has been repaired; 130 if interrupted; 141 if nobody reads what it
        prints any more. Files are written before anything is printed.
    """
    with _messages():
        try:
            try:
                return _run(arguments)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        except OSError as error:
            unread = isinstance(error, BrokenPipeError)
            if not unread:
                print(f"sedq: {error}", file=sys.stderr)
            for stream in (sys.stdout, sys.stderr):
                _give_up(stream)
            return UNREAD if unread else 2

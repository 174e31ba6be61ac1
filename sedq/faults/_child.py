"""A process in which trials may crash or hang."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

__all__ = ["Child", "serve"]

START = "from sedq.faults import _child, _worker; _child.serve(_worker.Worker)"


def _write(stream: IO[bytes], message: object) -> None:
    data = pickle.dumps(message)
    stream.write(struct.pack("<q", len(data)) + data)
    stream.flush()


def _read(stream: IO[bytes]) -> Any:
    header = stream.read(8)
    if len(header) < 8:
        raise EOFError
    (size,) = struct.unpack("<q", header)
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return pickle.loads(data)


class Child:
    """Runs calls under faults in a process of its own, which is started again whenever it ends or takes too long.

    An ordinary subprocess: executors whose workers may not have children by multiprocessing have this one.
    """

    def __init__(self, spec: Any, timeout: float) -> None:
        self._spec, self._timeout = spec, timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._replies: queue.Queue[Any] = queue.Queue()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-P", "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._replies = queue.Queue()
        threading.Thread(target=_pump, args=(process.stdout, self._replies), daemon=True).start()
        assert process.stdin is not None
        _write(process.stdin, self._spec)
        if self._replies.get(timeout=max(60.0, self._timeout)) != "ready":
            raise RuntimeError("a process for trials that may crash could not be started")
        return process

    def ask(self, trial: int, check: str) -> tuple[str, Any]:
        """Have a trial answered; ("", answer), or ("crash" or "hang", None)."""
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        assert self._process.stdin is not None
        _write(self._process.stdin, (trial, check))
        try:
            answer = self._replies.get(timeout=2 * self._timeout + 10)
        except queue.Empty:
            self.close()
            return "hang", None
        if answer is None or answer == "hang":
            return "hang" if answer else "crash", None
        if isinstance(answer, Exception):
            raise answer
        return "", answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process = None


def _pump(stream: IO[bytes], replies: queue.Queue[Any]) -> None:
    """Pass on what a process writes; None when it has ended."""
    try:
        while True:
            replies.put(_read(stream))
    except (EOFError, OSError, ValueError):
        replies.put(None)


def _answer(worker: Any, trial: int, check: str) -> Any:
    try:
        return worker.answer(trial, check)
    except Exception as error:
        return error


def _forked(worker: Any, trial: int, check: str, timeout: float) -> Any:
    """Answer in a fork of this process, which may crash or hang; None and "hang" say that it did.

    A fork costs a millisecond where a new process costs a second.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        with os.fdopen(writer, "wb") as stream:
            _write(stream, _answer(worker, trial, check))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        ready, _, _ = select.select([stream], [], [], timeout)
        if not ready:
            os.kill(pid, signal.SIGKILL)
        try:
            answer = _read(stream) if ready else "hang"
        except EOFError:
            answer = None
    os.waitpid(pid, 0)
    return answer


def serve(worker_of: Callable[[Any], Any]) -> None:
    """Answer what is asked on standard input, until it ends; `worker_of` makes a worker of what comes first."""
    with contextlib.suppress(ImportError):  # a crash here is nothing to keep an image of
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies, requests = sys.stdout.buffer, sys.stdin.buffer
    worker = worker_of(_read(requests))
    _write(replies, "ready")
    while True:
        try:
            trial, check = _read(requests)
        except EOFError:
            return
        forks = hasattr(os, "fork")
        _write(replies, _forked(worker, trial, check, worker.spec.timeout) if forks else _answer(worker, trial, check))

"""Strikes against a live process: a template, its workers, and the classification of what they do."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from types import TracebackType
from typing import Any

import numpy as np

from sedq._core import _ptrace
from sedq.detection import Kind
from sedq.faults.live import _protocol
from sedq.faults.live._strikes import NOTHING, Strike, Trial
from sedq.faults.live._symbols import Image, images
from sedq.faults.live._targets import damage

__all__ = ["LiveError", "Session"]

TRIALS_PER_WORKER = 256
PATIENCE = 120.0  # seconds until a template must have built its target
SOUND = 10  # timeouts that a call without a flip may take, on a machine that is busy
PERIODS = 16  # calls among which a moment is drawn: the first one begins when the worker is told to
OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}  # what no flip sends
MAY_NOT = (
    "live faults: got no permission to trace a process, expected one that may: kernel.yama.ptrace_scope 0 or 1 or the "
    "capability CAP_SYS_PTRACE, and in a container a seccomp profile that lets ptrace through"
)


class LiveError(RuntimeError):
    """The processes of a campaign don't do what they must even without a fault."""


class Session:
    """A template process and its current worker; a context manager, to be used by one thread.

    Parameters
    ----------
    options : dict
        operator, check, shape and seed of the target.
    timeout : float
        Seconds after which a call hangs.
    """

    def __init__(self, options: dict[str, Any], timeout: float) -> None:
        self.options, self.timeout = options, int(timeout * 1e9)
        self._worker: _ptrace.Tracee | None = None
        self._memory = -1
        self._trials_left = 0
        self.duration = 0.0  # of a call without a fault, in ns

    def __enter__(self) -> Session:
        control, self._control = os.pipe()
        self._reply, reply = os.pipe()
        go, self._go = os.pipe()
        self._done, done = os.pipe()
        # -P: what is imported is the package that is installed, though the campaign was begun in a source tree
        descriptors = map(str, (control, reply, go, done))
        command = [sys.executable, "-P", "-m", _protocol.CHILD, json.dumps(self.options), *descriptors]
        try:
            self._template = subprocess.Popen(
                command,
                pass_fds=(control, reply, go, done),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # what a terminal sends to this process isn't for that one
            )
        finally:
            for fd in (control, reply, go, done):
                os.close(fd)
        try:
            self._learn(json.loads(self._answer()))
            self._calibrate()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the worker and the template."""
        self._discard()
        for fd in (self._control, self._reply, self._go, self._done):
            os.close(fd)
        try:
            self._template.wait(5)
        except subprocess.TimeoutExpired:
            self._template.kill()
            self._template.wait()

    def _answer(self) -> str:
        """Return the next line from the template."""
        line, until = b"", time.monotonic() + PATIENCE
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._reply], [], [], max(0.0, until - time.monotonic()))
            part = os.read(self._reply, 65536) if ready else b""
            if not part:
                raise LiveError("the template process ended" if ready else f"no answer from the template in {PATIENCE:g} s")
            line += part
        return line.decode()

    def _tell(self, pipe: int, what: bytes) -> None:
        try:
            os.write(pipe, what)
        except BrokenPipeError:
            raise LiveError("the template process ended, and its worker") from None

    def _learn(self, told: dict[str, Any]) -> None:
        """Take in what the template tells of its memory, and read its operands as they must stay."""
        self._last: int = told["last"]
        self.isa: str = told["isa"]
        self._out: tuple[int, int] = (told["out"][0], told["out"][1])
        self.want = np.frombuffer(bytes.fromhex(told["want"]), told["dtype"])
        self._limits = np.array(told["limits"])
        self._places: dict[str, tuple[int, int]] = {name: (at[0], at[1]) for name, at in told["operands"].items()}
        self.images = images(self._template.pid, set(told["modules"]))
        if len(self.images) != len(told["modules"]):
            raise LiveError(f"found the code of {[i.path for i in self.images]}, expected that of {told['modules']}")
        memory = os.open(f"/proc/{self._template.pid}/mem", os.O_RDONLY)
        try:
            self._sound = {name: os.pread(memory, size, at) for name, (at, size) in self._places.items()}
        finally:
            os.close(memory)

    # ---- workers

    def worker(self) -> _ptrace.Tracee:
        """Return the current worker, or a new one."""
        if self._worker is None:
            while select.select([self._done], [], [], 0)[0]:
                if not os.read(self._done, 64):
                    raise LiveError("the template process ended")
            self._tell(self._control, b"f")
            pid = int(self._answer())
            try:
                self._worker = _ptrace.Tracee(pid)
            except PermissionError as error:
                raise PermissionError(f"{MAY_NOT} ({error})") from None
            self._memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
            self._trials_left = TRIALS_PER_WORKER
            self._expect_sound("a new worker's first call")
        return self._worker

    def _discard(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            os.close(self._memory)
            self._worker, self._memory = None, -1

    def _call(self, patience: int = 1) -> tuple[int, int]:
        """Run one call to its end, as `Tracee.wait` says it, within `patience` timeouts."""
        assert self._worker is not None
        self._tell(self._go, _protocol.ONCE)
        return self._wait(self._worker, patience)

    def _wait(self, worker: _ptrace.Tracee, patience: int = 1) -> tuple[int, int]:
        event, value = worker.wait(self._done, patience * self.timeout)
        if event == _ptrace.ENDED and os.WIFSIGNALED(value) and os.WTERMSIG(value) in OUTSIDE:
            raise LiveError(f"the worker was killed from outside, by {signal.Signals(os.WTERMSIG(value)).name}")
        return event, value

    def _call_without_flip(self, what: str) -> tuple[int, int]:
        begin, limit = time.perf_counter(), SOUND * self.timeout / 1e9
        ended = self._call(SOUND)
        # an answer that came too late may have been there before anybody looked
        if ended[0] == _ptrace.SILENT or time.perf_counter() - begin > limit:
            raise LiveError(f"{what} didn't end within {limit:g} s, expected a longer timeout, or a smaller shape")
        return ended

    def _expect_sound(self, what: str) -> None:
        ended = self._call_without_flip(what)
        if ended != (_ptrace.WROTE, _protocol.RETURNED) or self._changed()[0] or self._changed_operands():
            raise LiveError(f"{what} ended as {ended}, expected a right result")

    def _calibrate(self) -> None:
        """Measure how long a call takes, from telling the worker to its answer."""
        self.worker()
        times = []
        for _ in range(200):
            begin = time.perf_counter_ns()
            self._call_without_flip("a call")
            times.append(time.perf_counter_ns() - begin)
        self.duration = float(np.quantile(times, 0.75))

    # ---- memory

    def read(self, address: int, size: int) -> bytes:
        """Return bytes of the worker's memory."""
        data = os.pread(self._memory, size, address)
        if len(data) != size:
            raise ProcessLookupError(f"the memory of process {self.worker().pid} is gone")
        return data

    def write(self, address: int, data: bytes) -> None:
        """Write to the worker's memory, code included."""
        os.pwrite(self._memory, data, address)

    def _changed(self) -> tuple[float, bool]:
        return damage(np.frombuffer(self.read(*self._out), self.want.dtype), self.want, self._limits)

    def _changed_operands(self) -> tuple[str, ...]:
        return tuple(name for name, place in self._places.items() if self.read(*place) != self._sound[name])

    def image_at(self, pc: int) -> Image | None:
        """Return the compiled module whose code an address lies in."""
        for image in self.images:
            if image.low <= pc < image.high:
                return image
        return None

    # ---- trials

    def run(self, strike: Strike) -> Trial:
        """Strike a worker, and see what becomes of it."""
        try:
            worker = self.worker()
            tries, image, pc = self._meet(worker, strike)
            return self.struck(strike, tries, image, pc)
        except (ProcessLookupError, ChildProcessError):
            raise LiveError(f"trial {strike.trial}: the worker was killed from outside") from None

    def _meet(self, worker: _ptrace.Tracee, strike: Strike) -> tuple[int, Image, int]:
        """Let the worker run call after call, and stop it inside the extension."""
        self._tell(self._go, _protocol.REPEAT)
        for tries, moment in enumerate(strike.moments, 1):
            pc = worker.interrupt(int(moment * PERIODS * self.duration))
            image = self.image_at(pc)
            if image is not None:
                self.write(self._last, b"\1")  # the call it is in is to be the last
                return tries, image, pc
            worker.resume()
        raise LiveError(f"trial {strike.trial}: {len(strike.moments)} stops, none of them inside the extension")

    def struck(self, strike: Strike, tries: int, image: Image, pc: int) -> Trial:
        """Flip the bit in the stopped worker, let it go on, and classify."""
        worker = self.worker()
        if strike.kind != NOTHING:
            worker.flip(strike.kind, strike.register, strike.bit)
        worker.resume()
        offset = pc - image.base
        where = (*strike[:4], tries, image.function(offset), image.name, offset)
        trial = Trial(*where, **self._classify(*self._wait(worker)))
        self._trials_left -= 1
        if trial.outcome != "masked" or trial.operands or self._trials_left <= 0:
            self._discard()
        return trial

    def _classify(self, event: int, value: int) -> dict[str, Any]:
        if event == _ptrace.SILENT:
            return {"outcome": "hang"}
        if event == _ptrace.STOPPED:
            return {"outcome": "crash", "detail": signal.Signals(value).name}
        if event == _ptrace.ENDED:
            return {"outcome": "crash", "detail": f"status {value}"}
        size, beyond = self._changed()
        seen: dict[str, Any] = {"damage": size, "beyond": beyond, "operands": self._changed_operands()}
        if value == _protocol.RETURNED:
            outcome = {"outcome": "missed"} if size else self._control_call()
            return seen | outcome
        if value - _protocol.DETECTED in _protocol.NUMBER_OF.values():
            return seen | {"outcome": "detected" if size else "benign", "check": Kind(value - _protocol.DETECTED).label}
        return seen | {"outcome": "error"}

    def _control_call(self) -> dict[str, Any]:
        """After a fault that changed no output: the next call must be right, or the fault lies in wait."""
        event, value = self._call()
        if event != _ptrace.WROTE:
            return {"outcome": "latent", "detail": "hang" if event == _ptrace.SILENT else "crash"}
        if value != _protocol.RETURNED:
            return {"outcome": "latent", "detail": "detected" if value >= _protocol.DETECTED else "error"}
        return {"outcome": "latent", "detail": "missed"} if self._changed()[0] else {"outcome": "masked"}

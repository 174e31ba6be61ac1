"""The process that is struck: a template that forks workers, which run the operator when they are told to.

Run as ``python -m sedq.faults.live._child OPTIONS CONTROL REPLY GO DONE``: options as JSON, then four file descriptors. The
template writes a line of JSON about its memory to REPLY, then for each byte read from CONTROL forks a worker and writes
its process id; it ends with CONTROL. A worker that reads ONCE from GO spoils the output, runs the operator, and tells by a
byte to DONE how that ended. If it reads REPEAT it goes on until it is told in its memory that the call it is in is the
last, or until a call doesn't just return.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq import _config
from sedq._core import _dense, _dispatch, _embedding, _gemm, _ptrace
from sedq.exceptions import SoftErrorDetected
from sedq.faults.live._protocol import DETECTED, FAILED, NUMBER_OF, ONCE, RETURNED
from sedq.faults.live._targets import Target, build

__all__ = ["main"]

Array = NDArray[Any]
MEMORY = 4 << 30  # more than a worker needs; a corrupted size must not take the machine's


def _call(target: Target) -> int:
    try:
        target.call()
    except SoftErrorDetected as error:
        return DETECTED + NUMBER_OF[error.events[0].kind]
    except Exception:
        return FAILED
    return RETURNED


def _work(target: Target, last: Array, go: int, done: int) -> None:
    """Run the operator as told by bytes from `go`; last[0] tells whether the call is the last of its kind."""
    spoiled = (~target.want.view(np.uint8)).view(target.want.dtype)
    with _config.config_context(num_threads=1, on_error="raise"):
        while told := os.read(go, 1):
            last[0] = told == ONCE
            while True:
                target.out[...] = spoiled  # what isn't written shows
                status = _call(target)
                if last[0] or status != RETURNED:
                    break
            os.write(done, bytes([status]))


def _describe(target: Target, last: Array, operator: str) -> dict[str, Any]:
    modules = (_ptrace,) if operator == "probe" else (_dispatch, _gemm, _embedding, _dense)
    return {
        "isa": _config.get_config().kernels.name,
        "modules": [os.path.realpath(str(module.__file__)) for module in modules],
        "last": last.ctypes.data,
        "out": [target.out.ctypes.data, target.out.nbytes],
        "dtype": str(target.out.dtype),
        "limits": target.limits.tolist(),
        "want": target.want.tobytes().hex(),
        "operands": {name: [a.ctypes.data, a.nbytes] for name, a in target.operands.items()},
    }


def main(arguments: list[str]) -> None:
    """Serve as a template until CONTROL ends."""
    options = json.loads(arguments[0])
    control, reply, go, done = map(int, arguments[1:])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # workers that end are forgotten
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started the template ends it
    target = build(options["operator"], options["check"], tuple(options["shape"]), options["seed"])
    last = np.zeros(1, np.uint8)
    os.write(reply, json.dumps(_describe(target, last, options["operator"])).encode() + b"\n")
    while os.read(control, 1):
        while select.select([go], [], [], 0)[0] and os.read(go, 1):
            pass  # what an earlier worker was told and didn't hear
        pid = os.fork()
        if not pid:
            try:
                os.dup2(0, 2)  # last words of a struck process are no news
                _work(target, last, go, done)
            finally:
                os._exit(0)
        os.write(reply, b"%d\n" % pid)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # who started the template was interrupted
        main(sys.argv[1:])

"""Every run in a fresh process that is fast to start, cannot take anything down with it, and leaves nothing behind.

Children come from a fork server that has torch imported and has never run it, 0.03 s each. Each is the head of its own
session, so that it can be ended with all its descendants, and ends itself when the parent is gone.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Generic, TypeVar, TypeVarTuple

import psutil

Returned = TypeVar("Returned")
Message = TypeVar("Message")
Arguments = TypeVarTuple("Arguments")

context = multiprocessing.get_context("forkserver")
# The first optimizer would import the second, 0.6 s. Ours are imported there so that a folder of the user's that is
# named `optimeter` cannot be found in their place.
context.set_forkserver_preload(["torch", "torch._dynamo", "optimeter.measure.jobs.build"])

LONGEST_WAIT = 86_400.0  # seconds at once; the operating system takes no more than some weeks
SAFE_PATH, PATHS = "PYTHONSAFEPATH", "PYTHONPATH"
OURS = Path(__file__).parents[3]  # the folder where `optimeter` is found


@dataclass(frozen=True)
class Outcome(Generic[Returned]):
    """How a child ended: what it returned (None if it did not get that far), its exit code, and why it was stopped."""

    result: Returned | None
    exit_code: int | None
    timed_out: bool = False

    def describe(self) -> str:
        """The end of a child that returned nothing, in words."""
        if self.timed_out:
            return "stopped at its time limit"
        if self.exit_code is not None and self.exit_code < 0:
            name = signal.Signals(-self.exit_code).name
            hint = ", perhaps by the kernel for want of memory" if name == "SIGKILL" else ""
            return f"killed by {name}{hint}"
        return f"left with exit code {self.exit_code} before its record was written"


def start_server() -> None:
    """Start the fork server, whose imports then go on beside whatever the parent does next."""
    from multiprocessing.forkserver import ensure_running

    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("forkserver", force=True)  # joblib's workers name one that children lack
    paths = os.environ.get(PATHS)
    os.environ[SAFE_PATH] = "1"  # or a folder named torch here would be imported
    os.environ[PATHS] = os.pathsep.join([str(OURS), *([paths] if paths else [])])
    ensure_running()
    del os.environ[SAFE_PATH]
    restore(PATHS, paths)


def restore(variable: str, value: str | None) -> None:
    """Set an environment variable to what it was, or unset it."""
    os.environ.pop(variable, None)
    if value is not None:
        os.environ[variable] = value


def run_isolated(
    function: Callable[[*Arguments, Callable[[Message], None]], Returned],
    *arguments: *Arguments,
    log: Path | None = None,
    limit_seconds: float | None = None,
    on_message: Callable[[Message], None] = lambda message: None,
) -> Outcome[Returned]:
    """Call ``function(*arguments, send)`` in a fresh process; what it passes to `send` reaches `on_message`.

    `log` receives what the child prints. `limit_seconds` counts from the child's start. On any exception here
    (Ctrl-C too) the child and its descendants are killed first.
    """
    receiver, sender = context.Pipe(duplex=False)
    start_server()
    everything = (function, arguments, sender, log, os.environ.get(PATHS))
    process = context.Process(target=_child, args=everything, daemon=False)
    begin = time.monotonic()
    process.start()
    sender.close()
    try:
        result, timed_out = _listen(process, receiver, begin, limit_seconds, on_message)
    finally:
        _end(process.pid)
        process.join()
        receiver.close()
    return Outcome(result, process.exitcode, timed_out)


def _listen(
    process: BaseProcess,
    receiver: Connection,
    begin: float,
    limit_seconds: float | None,
    on_message: Callable[[Message], None],
) -> tuple[Returned | None, bool]:
    """Pass messages on until the result comes, the child ends or its time is up."""
    while True:
        left = None if limit_seconds is None else begin + limit_seconds - time.monotonic()
        if left is not None and left <= 0:
            return None, True
        if receiver in wait([receiver, process.sentinel], None if left is None else min(left, LONGEST_WAIT)):
            try:
                meaning, value = receiver.recv()
            except (EOFError, OSError):
                process.join(1)  # the pipe closed: the child has ended, or is about to
                return None, False
            if meaning == "result":
                return value, False
            on_message(value)
        elif not process.is_alive():
            return None, False


def _end(pid: int | None) -> None:
    """Kill a child, its session and whatever descends from it."""
    if pid is None:
        return
    family: list[psutil.Process] = []
    with suppress(psutil.Error):
        head = psutil.Process(pid)
        family = [head, *head.children(recursive=True)]
    with suppress(ProcessLookupError, PermissionError):
        if not family or os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
    for member in family:
        with suppress(psutil.Error):
            member.kill()


def _child(
    function: Callable[..., object], arguments: tuple, sender: Connection, log: Path | None, paths: str | None
) -> None:
    os.setsid()
    os.environ.pop(SAFE_PATH, None)
    restore(PATHS, paths)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    output = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    threading.Thread(target=_follow_parent, daemon=True).start()
    result = function(*arguments, lambda message: sender.send(("message", message)))
    sys.stdout.flush()
    sys.stderr.flush()
    sender.send(("result", result))


def _follow_parent() -> None:
    """End this process's whole group when the parent dies, which the fork server would not notice."""
    parent = multiprocessing.parent_process()
    if parent:
        wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)

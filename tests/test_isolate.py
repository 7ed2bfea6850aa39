"""One process a run: whatever a child does, the parent learns how it ended and nothing stays behind."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from optimeter.measure.jobs.isolate import run_isolated

Send = Callable[[Any], None]


def answers(value: int, send: Send) -> int:
    send("on my way")
    print("printed")
    return value + 1


def aborts(send: Send) -> None:
    os.abort()


def leaves(code: int, send: Send) -> None:
    send("last word")
    os._exit(code)


def raises(send: Send) -> None:
    raise RuntimeError("no")


def segfaults(send: Send) -> None:
    ctypes.string_at(0)


def is_killed(send: Send) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hangs_with_a_family(file: str, send: Send) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    processes = [subprocess.Popen(sleeper), subprocess.Popen(sleeper, start_new_session=True)]
    forked = os.fork()
    if forked == 0:
        time.sleep(600)
    Path(file).write_text(" ".join(str(pid) for pid in (os.getpid(), forked, *(p.pid for p in processes))))
    while True:
        time.sleep(1)


def leaves_a_child_behind(file: str, send: Send) -> int:
    Path(file).write_text(str(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid))
    return 1


def gone(pids: list[int]) -> bool:
    """Whether all have ended; a zombie that nobody has waited for has."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        living = [
            pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        ]
        if not living:
            return True
        time.sleep(0.05)
    return False


def test_result_messages_and_output(tmp_path: Path) -> None:
    messages: list[Any] = []
    outcome = run_isolated(answers, 41, log=tmp_path / "log", on_message=messages.append)
    assert outcome.result == 42
    assert messages == ["on my way"]
    assert (tmp_path / "log").read_text() == "printed\n"


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (aborts, (), "SIGABRT"),
        (segfaults, (), "SIGSEGV"),
        (is_killed, (), "SIGKILL, perhaps by the kernel for want of memory"),
        (leaves, (0,), "exit code 0"),
        (leaves, (7,), "exit code 7"),
        (raises, (), "exit code 1"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_way_to_end_is_told(function: Any, arguments: tuple, words: str) -> None:
    outcome = run_isolated(function, *arguments)
    assert outcome.result is None
    assert not outcome.timed_out
    assert words in outcome.describe()


def test_a_hang_is_ended_with_its_whole_family(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    outcome = run_isolated(hangs_with_a_family, str(file), limit_seconds=3)
    assert outcome.timed_out
    pids = [int(pid) for pid in file.read_text().split()]
    assert len(pids) == 4
    assert gone(pids)


def test_a_child_that_ends_leaves_no_orphan(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    assert run_isolated(leaves_a_child_behind, str(file)).result == 1
    assert gone([int(file.read_text())])


def test_an_exception_in_the_parent_ends_the_child(tmp_path: Path) -> None:
    file = tmp_path / "pids"

    def interrupt(message: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_isolated(_says_its_pid_and_hangs, str(file), on_message=interrupt)
    assert gone([int(file.read_text())])


def _says_its_pid_and_hangs(file: str, send: Send) -> None:
    Path(file).write_text(str(os.getpid()))
    send("ready")
    time.sleep(600)


def test_the_child_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from optimeter.measure.jobs.isolate import run_isolated
from tests.test_isolate import _says_its_pid_and_hangs
if __name__ == "__main__":
    run_isolated(_says_its_pid_and_hangs, {str(file)!r}, on_message=print)
"""
    (tmp_path / "parent.py").write_text(script)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert psutil.pid_exists(int(file.read_text()))
    parent.kill()
    parent.wait()
    assert gone([int(file.read_text())])

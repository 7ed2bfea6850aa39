"""How far a sweep is: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from optimeter.measure.methods.base import News

Item = TypeVar("Item")
PATIENCE, PAUSE = 2.0, 5.0  # seconds before the first line, and between two


def counted(items: Sequence[Item], words: str) -> Iterator[Item]:
    """The items, one by one; where they take long, a line on stderr now and then, "340 of 1000 jobs are composed"."""
    due = time.monotonic() + PATIENCE
    for number, item in enumerate(items):
        if time.monotonic() >= due:
            print(f"bench.py: {number} of {len(items)} {words}", file=sys.stderr, flush=True)
            due = time.monotonic() + PAUSE
        yield item


class Progress:
    """Shows run i of n, step, loss and the time left on stderr; `with` it, then `begin`, `news` and `end` each run."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.seconds: list[float] = []
        self._begin = 0.0
        self._bar: Bar | None = None
        self._task: TaskID  # where there is a bar

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[news]}"))
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4)
            self._bar.start()
            self._task = self._bar.add_task("", total=1, news="")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def begin(self, label: str) -> None:
        """A run starts."""
        self.done += 1
        self._begin = time.monotonic()
        if self._bar:
            title = f"[{self.done}/{self.total}] {label}".replace("[", r"\[")
            self._bar.update(self._task, description=title, completed=0, news="starting")

    def news(self, message: "News") -> None:
        """The run has made `step` of `steps`, which may be none."""
        step, steps, loss = message
        if self._bar:
            shown = "" if loss is None else f", loss {loss:.4g}"
            share = step / max(steps, 1)
            self._bar.update(self._task, completed=share, news=f"step {step}/{steps}{shown}{self._left()}")

    def end(self, label: str, status: str, kept: bool = False) -> None:
        """A run ended, or was kept."""
        if kept:
            self.done += 1
            return
        seconds = time.monotonic() - self._begin
        self.seconds.append(seconds)
        text = f"[{self.done}/{self.total}] {status:<11} {label} ({seconds:.1f} s{self._left()})"
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _left(self) -> str:
        if not self.seconds or self.done == self.total:
            return ""
        left = (self.total - self.done) * sum(self.seconds) / len(self.seconds)
        return f", about {left:.0f} s left" if left < 120 else f", about {left / 60:.0f} min left"

"""The folder of a run: config.yaml, steps.jsonl, log.txt and, last, result.json.

A run is written in ``<run>.part`` and renamed when it is whole, so that a folder without the suffix never changes
and killing anything at any moment leaves either a whole record or a part that the next start replaces.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optimeter.measure.records.naming import CONFIG, OLD, PART, RESULT
from optimeter.measure.records.read import Unreadable, read_result
from optimeter.measure.records.schema import FINISHED, Result
from optimeter.measure.records.write import to_json, write_atomically


class Place:
    """Where one run is kept: `<sweep>/<run>`, made in `<sweep>/<run>.part`."""

    def __init__(self, sweep: Path, run: str) -> None:
        self.sweep, self.folder = sweep, sweep / run
        self.part, self.old = sweep / (run + PART), sweep / (run + OLD)

    def finished(self) -> Result | None:
        """The result of a finished run, or None."""
        try:
            result = read_result(self.folder) if os.path.lexists(self.folder / RESULT) else None
        except Unreadable:
            return None
        return result if result and result.status in FINISHED else None

    @contextmanager
    def lock(self, wait: bool) -> Iterator[bool]:
        """Hold the run against other parents; gives False where another has it and `wait` is not set."""
        locks = self.sweep / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with open(locks / self.folder.name, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            self._recover()
            yield True

    def _recover(self) -> None:
        """Finish what was killed between the two renames of a commit."""
        if not self.folder.exists() and (self.part / RESULT).exists():
            self.part.rename(self.folder)
        elif not self.folder.exists() and self.old.exists():
            self.old.rename(self.folder)
        shutil.rmtree(self.old, ignore_errors=True)

    def begin(self, config_yaml: str) -> None:
        """Start afresh; what a killed run left behind goes.

        Raises Unreadable where something else than a record that can be read is in the run's place: it is left alone.
        """
        self._keep_clear()
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir(parents=True)
        write_atomically(self.part / CONFIG, config_yaml)

    def _keep_clear(self) -> None:
        if not os.path.lexists(self.folder):
            return
        if not self.folder.is_dir():
            raise Unreadable(self.folder, "it is no folder")
        if any(self.folder.iterdir()):
            read_result(self.folder)

    def commit(self, result: Result) -> None:
        """Write result.json and put the folder in its place; an older record there is replaced whole."""
        write_atomically(self.part / RESULT, to_json(result))
        shutil.rmtree(self.old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(self.old)
        self.part.rename(self.folder)
        shutil.rmtree(self.old, ignore_errors=True)

"""Tables that YAML files name: ours in table/ beside this file, a user's in the folders that `--config-dir` gives.

    # my_conf/table/best_losses.yaml
    _target_: my_tables.best_losses  # a function: the records → a Table, or None where they have nothing for it
    section: Losses                  # the heading that it stands under; without one, the folder's name
    order: 1                         # its place among the tables of its folder; those without come last, by name

Any other key is an argument of the function. A table that cannot be made is one line; the rest of the report stands.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from optimeter.measure.records.read import Record
from optimeter.measure.records.write import in_short
from optimeter.reports.table import Table

GENERAL = Path(__file__).parent
GENERAL_SECTION = "Tables of measures"
OURS = "optimeter."  # the only targets that are imported where the user gave no folder
GROUP = "table"
LAST = float("inf")
Make = Callable[[Sequence[Record]], object]


class Unusable(Exception):
    """Why a table cannot be made, in one line."""


@dataclass(frozen=True)
class NamedTable:
    """A table's function with its arguments, and where the report has the table."""

    path: Path
    section: str
    order: float
    make: Make


@dataclass
class MadeTables:
    """The tables of the folders by section, and a line for each that could not be made."""

    sections: dict[str, list[Table]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def tables(self) -> list[Table]:
        """All tables, in the order of the report."""
        return [table for section in self.sections.values() for table in section]


def make_tables(records: Sequence[Record], folders: Sequence[Path] = (), taken: Collection[str] = ()) -> MadeTables:
    """Make the general tables and those of the user's `folders` from records; `taken`: names of other tables."""
    made, names = MadeTables(), set(taken)
    distinct = {folder.resolve(): folder for folder in (*folders, GENERAL)}
    for folder in sorted(distinct.values(), key=lambda folder: folder != GENERAL):
        for named in _tables_of(folder, made.problems):
            try:
                table = _make(named, records, names)
            except Unusable as reason:
                made.problems.append(_problem(named.path, reason))
                continue
            if table:
                names.add(table.name)
                made.sections.setdefault(named.section, []).append(table)
    return made


def _tables_of(folder: Path, problems: list[str]) -> list[NamedTable]:
    """The tables of a folder in their order; those that cannot be loaded are added to `problems`."""
    tables = []
    for path in sorted((folder / GROUP).glob("*.yaml")):
        try:
            tables.append(load(path, folder))
        except Unusable as reason:
            problems.append(_problem(path, reason))
    return sorted(tables, key=lambda named: (named.order, named.path.stem))


def _problem(path: Path, reason: Unusable) -> str:
    return f"table {path.stem} ({path}): {reason}"


def load(path: Path, folder: Path) -> NamedTable:
    """Read a table's YAML and import its function; raises Unusable."""
    spec = _read(path)
    target, order = spec.pop("_target_", None), spec.pop("order", LAST)
    section = spec.pop("section", GENERAL_SECTION if folder == GENERAL else f"Tables of {folder.resolve().name}")
    if not isinstance(target, str) or "." not in target:
        raise Unusable("_target_ must be the dotted path of a function, like my_tables.best_losses")
    if not isinstance(order, (int, float)) or not isinstance(section, str):
        raise Unusable("order must be a number, and section a text")
    if folder == GENERAL and not target.startswith(OURS):
        raise Unusable(f"{target} is not of this package; a table of your own is a file in a --config-dir")
    return NamedTable(path, section, order, partial(_function(target), **spec))


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Unusable(f"it cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(spec, Mapping) or not all(isinstance(key, str) for key in spec):
        raise Unusable("it holds no mapping with a _target_")
    return dict(spec)


def _function(target: str) -> Callable[..., object]:
    """The function at a dotted path."""
    module, _, name = target.rpartition(".")
    try:
        function = getattr(import_module(module), name)
    except (Exception, SystemExit) as error:  # importing runs a stranger's code
        raise Unusable(f"{target} cannot be imported: {in_short(error)}") from error
    if not callable(function):
        raise Unusable(f"{target} is no function but a {type(function).__name__}")
    return function


def _make(named: NamedTable, records: Sequence[Record], names: Collection[str]) -> Table | None:
    """The table, in which the report will find nothing amiss; raises Unusable."""
    try:
        table = named.make(records)
        if isinstance(table, Table):
            _check(table, records)
    except (Exception, SystemExit) as error:  # a stranger's code
        raise Unusable(in_short(error)) from error
    if table is None:
        return None
    if not isinstance(table, Table):
        raise Unusable(f"it returned no Table but a {type(table).__name__}")
    if table.name in names:
        raise Unusable(f"there is another table called {table.name}")
    return table


def _check(table: Table, records: Sequence[Record]) -> None:
    """Raise whatever the report would raise over it."""
    table.markdown()
    table.csv()
    folders = {record.folder for record in records}
    for row in table.rows:
        for cell in row:
            if any(record.folder not in folders for record in cell.records):
                raise ValueError("a cell's records are not of this report")

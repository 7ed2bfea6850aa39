"""A table as data, and its three forms: Markdown, CSV and (in the page's template) HTML."""

import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimeter.measure.records.read import Record

DASH = "–"  # no value
NAME = r"\w[\w.-]*"  # of a table: its files are called so


@dataclass(frozen=True)
class Cell:
    """A value to sort by, the text to show, and the records it comes from."""

    value: Any
    text: str = ""
    records: tuple["Record", ...] = ()

    def __post_init__(self) -> None:
        """Raises TypeError for a text that is none."""
        if not isinstance(self.text, str):
            raise TypeError(f"a cell's text is a str, not {self.text!r}")

    @property
    def shown(self) -> str:
        """The text, or what the value says of itself."""
        return printable(self.text or (DASH if self.value is None else str(self.value)))


@dataclass(frozen=True)
class Table:
    """Rows of cells under `columns`; `name` is the file's, `notes` stand below."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        """Raises ValueError for a name that is no file's, and for a row that has not a cell for each column."""
        if not re.fullmatch(NAME, self.name):
            raise ValueError(f"a table's name is of letters, digits, _, - and ., not {self.name!r}")
        for number, row in enumerate(self.rows, start=1):
            if not all(isinstance(cell, Cell) for cell in row):
                raise ValueError(f"row {number} holds something else than cells")
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} has {len(row)} cells for {len(self.columns)} columns")

    def markdown(self) -> str:
        """A pipe table; a pipe in a text does not end its cell."""
        lines = [self.columns, ["---"] * len(self.columns), *([cell.shown for cell in row] for row in self.rows)]
        body = "\n".join("| " + " | ".join(_in_markdown(str(text)) for text in line) + " |" for line in lines)
        notes = "".join(f"\n\n{_in_markdown(note)}" for note in self.notes)
        return f"### {_in_markdown(self.title)}\n\n{body}{notes}\n"

    def csv(self) -> str:
        """Raw values, for spreadsheets; a text that would be taken for a formula gets a quote in front."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        for row in self.rows:
            writer.writerow([_in_csv(cell) for cell in row])
        return out.getvalue()


def printable(text: str) -> str:
    """`text` on one line, without what would steer a terminal: a record may come from anywhere."""
    if text.isprintable():
        return text
    return "".join(" " if unicodedata.category(letter).startswith("C") else letter for letter in text)


def _in_markdown(text: str) -> str:
    text = printable(text)
    for character in "\\|<>*_`&[]$~":
        text = text.replace(character, "\\" + character)
    return text


def _in_csv(cell: Cell) -> Any:
    value = cell.text.replace(DASH, "") if cell.value is None else cell.value
    if not isinstance(value, str):
        return value
    formula = value[:1] in ("=", "+", "-", "@", "\t", "\r")
    return printable(f"'{value}" if formula else value)


def number(value: float | None, digits: int = 4, unit: str = "") -> str:
    """`digits` significant figures with thousands separated, or a dash."""
    if value is None:
        return DASH
    if value == 0 or not 1e-4 <= abs(value) < 1e15:
        return f"{value:.{digits - 1}g}{unit}"
    magnitude = int(f"{value:.{digits - 1}e}".partition("e")[2])  # of the rounded value: 9.9996 has that of 10.00
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}{unit}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share in per cent, or a dash."""
    return DASH if value is None else f"{100 * value:,.{digits}f} %"


def scaled(
    value: float | None,
    factor: float = 1.0,
    digits: int = 4,
    records: "tuple[Record, ...]" = (),
    mark: str = "",
) -> Cell:
    """A cell with the value times `factor`; without one, a dash that leads nowhere. `mark` stands behind the number."""
    if value is None:
        return Cell(None, DASH)
    return Cell(value * factor, number(value * factor, digits) + mark, records)


def texts(*values: str | None, records: "tuple[Record, ...]" = ()) -> list[Cell]:
    """A cell for each text, a dash where there is none."""
    return [Cell(value, value or DASH, records) for value in values]

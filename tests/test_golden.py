"""Every cell of every table made from the published records is what it was before the rooms were built.

`python -m tests.test_golden` writes the golden values anew; a change of structure must never need it.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from optimeter.measure.records.read import read_records
from optimeter.reports.comparison import comparison
from optimeter.reports.group import settings_of
from optimeter.reports.plugins import make_tables
from optimeter.reports.table import Table
from tests.conftest import PROJECT, STUDY

PUBLISHED = {name: PROJECT / "results" / name for name in ("cpu-2-cores", "cpu-2-cores-documents")}
GOLDEN = Path(__file__).parent / "golden"
SETTINGS, MEASURES = "settings", "tables of measures"
# Old place of a table → its new one; a table that is not named here stays where it was.
PLACES = dict.fromkeys(("optimizer_steps", "memory_plan", "monitor_overhead"), MEASURES)
# Old head → new head, in all tables.
HEADS: dict[str, str] = {}


def tables(folder: Path) -> dict[str, tuple[str, Table]]:
    """Name of each table of a folder's report → (where the report has it, the table)."""
    records = read_records(folder)
    placed = {}
    for number, setting in enumerate(settings_of(records), start=1):
        table = comparison(setting, number)
        placed[table.name] = (SETTINGS, table)
    made = make_tables(records, [STUDY])
    assert not made.problems
    for section, ours in made.sections.items():
        placed |= {table.name: (section.lower(), table) for table in ours}
    return placed


def plain(place: str, table: Table) -> dict[str, Any]:
    """A table as JSON has it: [value, text] of each cell, and from how many runs it comes."""
    rows = [[[cell.value, cell.shown, len(cell.records)] for cell in row] for row in table.rows]
    return json.loads(json.dumps({"place": place, "title": table.title, "columns": list(table.columns), "rows": rows}))


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_cell_is_what_it_was(name: str) -> None:
    golden = json.loads(gzip.decompress((GOLDEN / f"{name}.json.gz").read_bytes()))
    made = {table: plain(*placed) for table, placed in tables(PUBLISHED[name]).items()}
    assert made.keys() == golden.keys()
    for table, old in golden.items():
        new = made[table]
        assert new["place"] == PLACES.get(table, old["place"]), table
        assert new["title"] == old["title"], table
        assert new["columns"] == [HEADS.get(head, head) for head in old["columns"]], table
        for number, (row, old_row) in enumerate(zip(new["rows"], old["rows"], strict=True)):
            assert row == old_row, f"{table}, row {number}"


def write() -> None:
    """Keep today's values."""
    GOLDEN.mkdir(exist_ok=True)
    for name, folder in PUBLISHED.items():
        kept = {table: plain(*placed) for table, placed in tables(folder).items()}
        text = json.dumps(kept, ensure_ascii=False, indent=0)
        (GOLDEN / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    write()

"""The report of a folder of records: tables, plots, and one self-contained page that needs no network."""

import base64
import hashlib
import json
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from optimeter.measure.records.record import REPORT, RESULT, STATUSES, Record, read_records
from optimeter.reports.comparison import comparison, summary
from optimeter.reports.figures import PLOTS
from optimeter.reports.group import Setting, at, doubts, settings
from optimeter.reports.plugins import MadeTables, make_tables
from optimeter.reports.table import DASH, Cell, Table

FILES = ("result.json", "config.yaml", "steps.jsonl", "log.txt")
LEFT_OUT = ("environment", "command")  # of a run's excerpt: they stand elsewhere on the page
MOST_PLOTTED = 12  # settings with pictures: a page of hundreds is read by its tables


@dataclass(frozen=True)
class Plot:
    """A picture, for the page in base64."""

    title: str
    file: str
    data: str


@dataclass(frozen=True)
class Section:
    """What the page says of one setting."""

    title: str
    summary: str
    table: Table
    plots: Sequence[Plot]


def build(root: Path, folders: Sequence[Path] = (), tell: Callable[[str], object] = lambda problem: None) -> Path:
    """Write `root`/report from the records under `root`; returns the page.

    `folders` hold tables of a user's own; `tell` is called with a line for each table that could not be made. An older
    report stays until the new one is whole. Raises FileNotFoundError without records, and FileExistsError where
    `root`/report holds records and would be lost.
    """
    report = root / REPORT
    if next(report.glob(f"**/{RESULT}"), None):
        raise FileExistsError(f"{report}: there are records in it; rename it, the report goes there")
    records = read_records(root)
    if not records:
        raise FileNotFoundError(f"{root}: no records in it; python bench.py name=… makes some")
    with tempfile.TemporaryDirectory(prefix=f".{REPORT}-", dir=root) as scratch:
        new = Path(scratch, REPORT)
        for folder in ("tables", "plots"):
            (new / folder).mkdir(parents=True)
        problems = _write(new, root, records, folders)
        if report.exists():
            report.rename(Path(scratch, "old"))
        new.rename(report)
    for problem in problems:
        tell(problem)
    return report / "index.html"


def _write(report: Path, root: Path, records: Sequence[Record], folders: Sequence[Path]) -> list[str]:
    """Write tables, plots and page; returns a line for each table that could not be made."""
    sections = [_section(setting, number, report) for number, setting in enumerate(settings(records), start=1)]
    compared = [section.table for section in sections]
    made = make_tables(records, folders, taken=[table.name for table in compared])
    for table in (*compared, *made.tables):
        (report / "tables" / f"{table.name}.md").write_text(table.markdown(), encoding="utf-8")
        (report / "tables" / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
    command = shlex.join(["python", "-m", "reports", *(f"--config-dir={folder}" for folder in folders), str(root)])
    (report / "index.html").write_text(_render(root, records, sections, made, command), encoding="utf-8")
    return made.problems


def _section(setting: Setting, number: int, report: Path) -> Section:
    plots = []
    for name, draw in PLOTS if number <= MOST_PLOTTED else ():
        path = report / "plots" / f"{name}-{number}.png"
        if draw(setting, path):
            data = base64.b64encode(path.read_bytes()).decode()
            plots.append(Plot(f"{name.replace('_', ' ')}: {setting.label}", path.name, data))
    return Section(setting.label, summary(setting), comparison(setting, number), plots)


def _render(root: Path, records: Sequence[Record], sections: Sequence[Section], made: MadeTables, command: str) -> str:
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    ).get_template("page.html.j2")
    counts = Counter(record.result["status"] for record in records)
    tables = [*(section.table for section in sections), *made.tables]
    runs = [_complete(record) for record in records]
    names = {name for record in records if (name := record.result.get("name"))}
    unplotted = len(sections) - MOST_PLOTTED
    return template.render(
        title=names.pop() if len(names) == 1 else root.resolve().name,
        machine="; ".join(sorted({machine(record) for record in records if record.result.get("environment")})),
        counts=[(status, counts[status]) for status in STATUSES if counts[status]],
        texts=lambda table, column: any(isinstance(cells[column].value, str) for cells in table.rows),
        shown=lambda value: DASH if value is None else value,
        runs=runs,
        sections=sections,
        named=list(made.sections.items()),
        problems=made.problems,
        failures=[record for record in runs if record.result["status"] != "ok" or doubts(record)],
        reason=lambda record: "; ".join([record.result["reason"] or "", *doubts(record)]).strip("; "),
        worst=worst,
        unplotted=f"Pictures are of the first {MOST_PLOTTED} settings." if unplotted > 0 else "",
        groups=_groups(root, tables),
        commands=sorted({typed for record in records if (typed := record.result.get("command"))}),
        command=command,
        environments=sorted(
            {_pretty(record.result["environment"]) for record in runs if record.result.get("environment")}
        ),
        anchor=partial(anchor, root),
        group_anchor=partial(group_anchor, root),
        sort_key=sort_key,
        files=lambda record: [file for file in FILES if (record.folder / file).exists()],
        link=lambda record, file: quote(f"../{record.folder.relative_to(root)}/{file}"),
        excerpt=lambda record: _pretty({key: part for key, part in record.result.items() if key not in LEFT_OUT}),
    )


def machine(record: Record) -> str:
    """The processor (and GPU) of a run, in words."""
    environment = record.result["environment"]
    cpu = at(environment, "cpu")
    parts = [at(environment, "gpu", "name"), f"{cpu['model']}, {cpu['logical_cores']} logical cores" if cpu else None]
    return ", ".join([*filter(None, parts), f"torch {at(environment, 'packages', 'torch')}"])


def _groups(root: Path, tables: Iterable[Table]) -> list[tuple[Record, ...]]:
    """Each set of several runs that some number comes from, once."""
    cells = (cell for table in tables for row in table.rows for cell in row if len(cell.records) > 1)
    return list({group_anchor(root, cell.records): cell.records for cell in cells}.values())


def _pretty(value: dict[str, Any]) -> str:
    """JSON with a line a key, and what is inside a key on one line where it is short."""
    lines = [f"  {json.dumps(key)}: {json.dumps(part, ensure_ascii=False)}" for key, part in value.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def _complete(record: Record) -> Record:
    """With every key that the page names, for runs that never wrote a result."""
    return Record(record.folder, dict.fromkeys(("seed", "command", "reason", "environment")) | record.result)


def worst(text: str) -> str:
    """The colour of a group's status: that of the first thing in it that is not well."""
    if "INVALID" in text:
        return "error"
    return next((status for status in reversed(STATUSES) if status in text), "")


def anchor(root: Path, record: Record) -> str:
    """The page's id of a run: of its folder, since two sweeps may have runs of one name."""
    return f"run-{hashlib.sha256(str(record.folder.relative_to(root)).encode()).hexdigest()[:12]}"


def group_anchor(root: Path, records: Iterable[Record]) -> str:
    """The page's id of the runs behind a number."""
    names = "\n".join(sorted(anchor(root, record) for record in records))
    return f"group-{hashlib.sha256(names.encode()).hexdigest()[:12]}"


def sort_key(cell: Cell) -> str:
    """What a column sorts by: the value, nothing where there is none."""
    return "" if cell.value is None else str(cell.value)

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
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from optimeter.measure.records.fields import JSON, is_empty, to_plain
from optimeter.measure.records.naming import CONFIG, LOG, REPORT, RESULT, STEPS
from optimeter.measure.records.read import Record, read_records
from optimeter.measure.records.schema import STATUSES, Result
from optimeter.reports.comparison import comparison, summary
from optimeter.reports.group import Setting, settings_of
from optimeter.reports.look import doubts
from optimeter.reports.plots import PLOTS
from optimeter.reports.plugins import MadeTables, make_tables
from optimeter.reports.table import DASH, Cell, Table

FILES = (RESULT, CONFIG, STEPS, LOG)
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
    sections = [_section(setting, number, report) for number, setting in enumerate(settings_of(records), start=1)]
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
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals |= {
        "anchor": partial(anchor, root),
        "excerpt": excerpt,
        "files": files,
        "group_anchor": partial(group_anchor, root),
        "holds_texts": holds_texts,
        "link": lambda record, file: quote(f"../{record.folder.relative_to(root)}/{file}"),
        "reason": reason,
        "shown": lambda value: DASH if value is None else value,
        "sort_key": sort_key,
        "worst": worst,
    }
    results = [record.result for record in records]
    counts = Counter(run.status for run in results)
    names = {run.name for run in results if run.name}
    placed = [run for run in results if not is_empty(run.environment)]
    return environment.get_template("page.html.j2").render(
        title=names.pop() if len(names) == 1 else root.resolve().name,
        machine="; ".join(sorted({machine(run) for run in placed})),
        counts=[(status, counts[status]) for status in STATUSES if counts[status]],
        runs=records,
        sections=sections,
        unplotted=f"Pictures are of the first {MOST_PLOTTED} settings." if len(sections) > MOST_PLOTTED else "",
        named=list(made.sections.items()),
        problems=made.problems,
        failures=[record for record in records if record.result.status != "ok" or doubts(record)],
        groups=_groups(root, [*(section.table for section in sections), *made.tables]),
        command=command,
        commands=sorted({run.command for run in results if run.command}),
        environments=sorted({_pretty(to_plain(run.environment)) for run in placed}),
    )


def machine(run: Result) -> str:
    """The GPU, the processor and torch's version."""
    cpu, packages = run.environment.cpu, run.environment.packages
    processor = f"{cpu.model}, {cpu.logical_cores} logical cores" if not is_empty(cpu) else None
    return ", ".join([*filter(None, (run.environment.gpu.name, processor)), f"torch {packages.get('torch')}"])


def excerpt(record: Record) -> str:
    """What a run's record says, without what stands elsewhere on the page and what is empty."""
    plain = to_plain(record.result)
    return _pretty({key: part for key, part in plain.items() if key not in LEFT_OUT and part not in (None, {}, [])})


def files(record: Record) -> list[str]:
    """The files in a run's folder."""
    return [file for file in FILES if (record.folder / file).exists()]


def reason(record: Record) -> str:
    """Why a run did not end as ok, or is not to be believed."""
    return "; ".join(filter(None, [record.result.reason, *doubts(record)]))


def holds_texts(table: Table, column: int) -> bool:
    """Whether a column has texts, which stand at the left."""
    return any(isinstance(row[column].value, str) for row in table.rows)


def _groups(root: Path, tables: Iterable[Table]) -> list[tuple[Record, ...]]:
    """Each set of several runs that some number comes from, once."""
    cells = (cell for table in tables for row in table.rows for cell in row if len(cell.records) > 1)
    return list({group_anchor(root, cell.records): cell.records for cell in cells}.values())


def _pretty(value: dict[str, JSON]) -> str:
    """JSON with a line a key, and what is inside a key on one line where it is short."""
    lines = [f"  {json.dumps(key)}: {json.dumps(part, ensure_ascii=False)}" for key, part in value.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


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

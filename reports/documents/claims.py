"""The table `claims`: what the five documents claim, what the records say, and the verdict.

The claims and the queries that answer them are data, `claims.yaml`; its head says what each key means. A verdict
is worked out from records or from arithmetic that is shown; without either a claim is not measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from optimeter.measure.records.read import Record
from optimeter.reports.documents.evidence import BOTH, ONE_SEED, OUTDONE, UNREACHED, Figure, figures
from optimeter.reports.documents.expression import evaluate
from optimeter.reports.table import DASH, Cell, Table, number, percent, texts

CLAIMS = Path(__file__).resolve().parent / "claims.yaml"
HOLDS, FAILS, ELSEWHERE, OPEN = "holds", "does not hold", "not reproducible as stated", "not measured"
NAME = "documents"  # of the records that are there for the claims
COLUMNS = ("claim", "document", "about", "what is claimed", "stated", "measured", "conditions", "verdict", "notes")
MORE_SEEDS = "more seeds"
MOST_SETTINGS = 3  # spelled out in one cell
NOTES = (
    "Measured: from the records of this report, or arithmetic on the document's own numbers. Idea: measured on the "
    "implementation here. Published code: the code that the document came with, which is not here, so it is not "
    "judged. In brackets 95 % intervals over seeds, or for times of separate runs what the spread of their steps "
    "leaves; steps to a target add what lies between two evaluations. Where records hold several "
    "learning rates of one optimizer, its best is taken; where they hold one alone, quality is not judged.",
    "Holds: the figure, with its whole interval, is in the range that is given under conditions. Does not hold: the "
    "figure, with its whole interval, is outside in a setting (or, for 'on most', in half of them). Not "
    "reproducible as stated: the document leaves out what it was measured on, or it cannot be had. Not measured: "
    "no record answers it, one seed or one learning rate is too few, or the interval reaches both sides.",
)


@dataclass(frozen=True)
class Judged:
    """The outcome of one part of a claim."""

    verdict: str
    measured: str = ""
    conditions: str = ""
    records: tuple[Record, ...] = ()
    reason: str = ""
    needs: str = ""  # what would settle it


@cache
def all_claims() -> list[dict[str, Any]]:
    """claims.yaml."""
    import yaml

    return yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))


def claims(records: Sequence[Record]) -> Table | None:
    """Every claim with its figure and verdict; nothing where no record answers one, but for records named so."""
    judged = [(claim, judge(claim, records)) for claim in all_claims()]
    answered = any(outcome.records for _, outcome in judged)
    if not answered and not any(_for_claims(record) for record in records):
        return None
    return Table(
        "claims",
        "claims: what the documents claim, and what was measured",
        COLUMNS,
        [_row(claim, outcome) for claim, outcome in judged],
        NOTES,
    )


def _for_claims(record: Record) -> bool:
    return str(record.result.name or record.result.config.get("name")).startswith(NAME)


def judge(claim: dict[str, Any], records: Sequence[Record]) -> Judged:
    """The verdict on a claim; one of several parts holds where each of them does."""
    if "parts" not in claim:
        return judge_part(claim, records)
    parts = [judge_part(claim | part, records) for part in claim["parts"]]
    labels = [part["part"] for part in claim["parts"]]
    verdicts = [part.verdict for part in parts]
    verdict = next((worst for worst in (FAILS, OPEN, ELSEWHERE) if worst in verdicts), HOLDS)
    deciding = [part for part in parts if part.verdict == verdict]
    return Judged(
        verdict,
        _joined(labels, [part.measured for part in parts]),
        _joined(labels, [part.conditions for part in parts]),
        tuple({record.folder: record for part in parts for record in part.records}.values()),
        "; ".join(dict.fromkeys(part.reason for part in deciding if part.reason)),
        ", ".join(dict.fromkeys(part.needs for part in deciding if part.needs)),
    )


def _joined(labels: Sequence[str], answers: Sequence[str]) -> str:
    return "; ".join(f"{label}: {answer}" for label, answer in zip(labels, answers, strict=True) if answer)


def judge_part(claim: dict[str, Any], records: Sequence[Record]) -> Judged:
    """The verdict on what has one query."""
    if claim["figure"] == "none":
        return Judged(OPEN, needs=claim.get("needs", ""))
    if claim["figure"] == "arithmetic":
        return _arithmetic(claim)
    measured = figures(claim["figure"], claim, records)
    if not measured:
        return Judged(OPEN, needs=claim["needs"])
    verdict, reason = verdict_of(claim, measured)
    if len(measured) > 1 and verdict != OPEN:
        holds = [holding(claim["holds"], figure) is True for figure in measured]
        reason = f"{sum(holds)} of {len(holds)} settings"
    if "lacks" in claim and reason != ONE_SEED:
        verdict, reason = ELSEWHERE, claim["lacks"]
    shown = [_shown(claim, figure) for figure in measured[:MOST_SETTINGS]]
    more = [f"and {len(measured) - MOST_SETTINGS} more"] if len(measured) > MOST_SETTINGS else []
    labels = [figure.label for figure in measured[:MOST_SETTINGS]]
    return Judged(
        verdict,
        ", ".join([*shown, *more]),
        " | ".join([*labels, *more, *filter(None, [claim.get("clock"), _range(claim)])]),
        tuple({record.folder: record for figure in measured for record in figure.records}.values()),
        reason,
        "" if verdict != OPEN else MORE_SEEDS if claim.get("seeds") else "longer runs, or a quieter machine",
    )


def _arithmetic(claim: dict[str, Any]) -> Judged:
    value = evaluate(claim["formula"])
    verdict = HOLDS if holding(claim["holds"], Figure(value)) else FAILS
    return Judged(verdict, f"{claim['formula']} = {_text(claim, value)}", f"arithmetic | {_range(claim)}")


def verdict_of(claim: dict[str, Any], measured: Sequence[Figure]) -> tuple[str, str]:
    """The verdict over all settings, and why there is none."""
    judged = [None if figure.doubt else holding(claim["holds"], figure) for figure in measured]
    yes, no, n = judged.count(True), judged.count(False), len(judged)
    if claim.get("over") == "most":
        verdict = HOLDS if 2 * yes > n else FAILS if 2 * no >= n else OPEN
    else:
        verdict = FAILS if no else HOLDS if yes == n else OPEN
    undecided = [figure for figure, holds in zip(measured, judged, strict=True) if holds is None]
    doubts = [figure.doubt or f"target {figure.bound}" for figure in undecided if figure.doubt or figure.bound]
    return verdict, (doubts[0] if doubts else "the interval reaches both sides") if verdict == OPEN else ""


def holding(holds: dict[str, float], figure: Figure) -> bool | None:
    """Whether the figure is in the range, with its whole interval; None where that cannot be told."""
    if figure.value is None or figure.bound == BOTH:
        return None
    least, most = holds.get("at_least", float("-inf")), holds.get("at_most", float("inf"))
    low = figure.value if figure.low is None else figure.low
    high = figure.value if figure.high is None else figure.high
    if low > most or high < least:
        return None if figure.bound == OUTDONE else False
    inside = least <= low and high <= most
    return True if inside and figure.bound != UNREACHED else None


def _shown(claim: dict[str, Any], figure: Figure) -> str:
    text = _text(claim, figure.value)
    if figure.low is not None and figure.high is not None:
        text += f" [{_text(claim, figure.low)}, {_text(claim, figure.high)}]"
    if figure.bound in (UNREACHED, OUTDONE):
        more = (figure.bound == UNREACHED) == (claim["figure"] != "saving")  # steps to the target than were made
        text = f"{'at least' if more else 'at most'} {text}"
    return f"{text}, target {figure.bound}" if figure.bound else text


def _text(claim: dict[str, Any], value: float | None) -> str:
    """A number as the claim is stated: a share, a whole number, or a number with its unit."""
    unit = claim.get("unit", "")
    if value is None:
        return DASH
    if unit == "%":
        return percent(value, 1)
    if abs(value - round(value)) < 1e-9 * max(1, abs(value)) and abs(value) < 1e15:
        return f"{round(value):,} {unit}".rstrip()
    return f"{number(value)} {unit}".rstrip()


def _range(claim: dict[str, Any]) -> str:
    """The range in which the claim holds, and why it is that one."""
    holds = claim["holds"]
    if holds.get("at_least") == holds.get("at_most"):
        return f"holds: exactly {_text(claim, holds['at_least'])}"
    words = (("at_least", "at least"), ("at_most", "at most"))
    ends = " and ".join(f"{text} {_text(claim, holds[name])}" for name, text in words if name in holds)
    most = " on most" if claim.get("over") == "most" else ""
    return f"holds{most}: {ends}" + (f" ({holds['because']})" if "because" in holds else "")


def _row(claim: dict[str, Any], outcome: Judged) -> list[Cell]:
    verdict, conditions, reason = outcome.verdict, outcome.conditions, outcome.reason
    if claim["about"] == "published code" and claim["figure"] == "none":
        verdict = f"{OPEN}: published code"
    if reason and outcome.verdict in (OPEN, ELSEWHERE):
        verdict += f": {reason}"
    elif reason:
        conditions += f" ({reason})"
    missing = f"Needs: {outcome.needs}." if outcome.needs else ""
    notes = " ".join(filter(None, (missing, claim.get("note"), claim.get("reference"))))
    return [
        *texts(claim["id"], claim["document"], claim["about"], claim["claim"], str(claim["stated"])),
        Cell(outcome.measured or None, outcome.measured, outcome.records),
        Cell(conditions or None, conditions),
        Cell(verdict, verdict, outcome.records),
        Cell(notes or None, notes),
    ]

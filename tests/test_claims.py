"""Claims judged from records that the tests write; every claim is whole, and asks for what there is."""

import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

from optimeter.measure.records import fields
from optimeter.measure.records.read import read_records
from optimeter.measure.records.schema import Result, Spread, Times
from optimeter.reports.documents.claims import (
    COLUMNS,
    ELSEWHERE,
    FAILS,
    HOLDS,
    OPEN,
    all_claims,
    claims,
    holding,
    judge,
    verdict_of,
)
from optimeter.reports.documents.evidence import (
    ALONE,
    BOTH,
    ONE_RATE,
    ONE_SEED,
    OUTDONE,
    PAIRED,
    UNREACHED,
    Figure,
    best,
    candidates,
    described,
    figures,
)
from optimeter.reports.documents.expression import evaluate
from optimeter.reports.documents.finetuning import adafactor_vs_adam, lora_comparison, lora_summary
from optimeter.reports.documents.quantities import look_up, read
from optimeter.reports.group import settings_of
from optimeter.reports.page import build
from tests.conftest import STUDY, composed, names
from tests.test_reports import record, write
from tests.test_tables import rows_of, step_record

KEYS = {"id", "document", "claim", "stated", "about", "figure", "unit", "field", "where", "of", "to", "seeds", "spread"}
KEYS |= {"holds", "over", "lacks", "needs", "note", "reference", "parts", "part", "formula", "unreached", "low", "high"}
KEYS |= {"clock", "printed", "within", "by"}


def parts_of(claim: dict[str, Any]) -> list[dict[str, Any]]:
    """The claim, or its parts with what they share."""
    return [claim | part for part in claim.get("parts", [{}])]


PARTS = [(f"{claim['id']} {part.get('part', '')}", part) for claim in all_claims() for part in parts_of(claim)]
QUERIES = [(name, part) for name, part in PARTS if part["figure"] not in ("none", "arithmetic")]


def test_every_claim_is_there_once() -> None:
    assert [claim["id"] for claim in all_claims()] == [f"M{number:02d}" for number in range(1, 68)]
    documents = [claim["document"] for claim in all_claims()]
    assert documents == sorted(documents)
    assert set(documents) == {"000", "001", "002", "003", "004"}


@pytest.mark.parametrize(("name", "claim"), PARTS, ids=[name for name, _ in PARTS])
def test_every_claim_is_whole(name: str, claim: dict[str, Any]) -> None:
    assert set(claim) <= KEYS
    assert {"claim", "stated", "about", "figure"} <= set(claim)
    assert claim["about"] in ("idea", "published code")
    if claim["about"] == "published code":
        assert claim["figure"] == "none"
        assert claim["reference"]
        return
    assert claim["figure"] in {"none", "arithmetic", *ALONE, *PAIRED}
    assert (claim["figure"] in PAIRED) == ("to" in claim)
    if claim["figure"] != "arithmetic":
        assert claim["needs"], "what would answer it"
    if claim["figure"] != "none":
        assert set(claim["holds"]) <= {"at_least", "at_most", "because"}
        assert len(set(claim["holds"]) - {"because"}) >= 1


@pytest.mark.parametrize(("name", "claim"), QUERIES, ids=[name for name, _ in QUERIES])
def test_every_query_asks_for_what_there_is(name: str, claim: dict[str, Any]) -> None:
    for side in ("where", "of", "to"):
        wanted = claim.get(side, {})
        for kind in ("optimizer", "workload"):
            asked = wanted.get(kind, [])
            assert {*([asked] if isinstance(asked, str) else asked)} <= {*names(kind)}
        for key in (key for key in wanted if key.startswith(("optimizer.", "workload."))):
            group, _, argument = key.partition(".")
            choices = {**claim.get("where", {}), **wanted}[group]
            for choice in [choices] if isinstance(choices, str) else choices:
                assert argument in composed(f"{group}={choice}")[group], key


LINES = ("first", "last")  # of steps.jsonl, whose keys are not the record's


@pytest.mark.parametrize(("name", "claim"), QUERIES, ids=[name for name, _ in QUERIES])
def test_every_field_is_a_key_of_the_record(name: str, claim: dict[str, Any]) -> None:
    expressions = [claim[key] for key in ("field", "low", "high", "unreached") if key in claim]
    paths: list[tuple[str, ...]] = []
    for expression in [*expressions, *claim.get("spread", [])]:
        evaluate(expression, paths.append)
    assert paths or claim["figure"] == "fall"
    for path in paths:
        if path == ("unsteadiness",) or path[0] in LINES or claim["figure"] == "rows":
            continue
        block: Any = Result(status="ok", time=Times(step=Spread(median=1.0, p10=1.0, p90=1.0, n=1)))
        for key in path:
            assert key in fields.names(type(block)), path
            block = getattr(block, key)
            if not is_dataclass(block):
                break


def test_experiments_that_answer_exist() -> None:
    text = (STUDY / "claims.yaml").read_text()
    assert set(re.findall(r"experiment=(\w+)", text)) <= set(names("experiment"))


@pytest.mark.parametrize(
    ("text", "value"),
    [("4096 * 8192 * 2", 67_108_864), ("1 - 13 / 18", 5 / 18), ("-9 / 4", -2.25), ("0.7 ** (4000 / 1000)", 0.2401)],
)
def test_arithmetic(text: str, value: float) -> None:
    assert evaluate(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["1 / 0", "10.0 ** 64 ** 1 ** 1 * 10.0 ** 64 ** 1 / 0", "(-8) ** 0.5"])
def test_arithmetic_without_a_value_is_none(text: str) -> None:
    assert evaluate(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')", "open('x')", "x", "a.b", "[1][0]", "1 if 1 else 2", "1 < 2", "'a' * 3", "True", "1 // 2",
        "1; 2", "", "(", "lambda: 1", "{}", "1 and 2", "f'{1}'", "2 ** 100", "~1", "(1).real", "1j",
    ],
)  # fmt: skip
def test_nothing_but_arithmetic_is_evaluated(text: str) -> None:
    with pytest.raises(ValueError):
        evaluate(text)


def test_names_are_looked_up_and_nothing_else() -> None:
    found = {"memory": {"state": 12}, "flag": True, "text": "3"}
    assert evaluate("memory.state / 4 + flag", lambda path: look_up(found, path)) == 4
    assert evaluate("memory.nothing * 2", lambda path: look_up(found, path)) is None
    assert evaluate("text", lambda path: look_up(found, path)) is None
    with pytest.raises(ValueError):
        evaluate("memory.state.__class__()", lambda path: look_up(found, path))


def query(**changes: Any) -> dict[str, Any]:
    return {
        "id": "M00", "document": "000", "claim": "less", "stated": "less", "about": "idea", "figure": "saving",
        "field": "memory.state_bytes", "where": {"workload": "mlp"}, "of": {"optimizer": "a"}, "to": {"optimizer": "b"},
        "holds": {"at_least": 0.4}, "needs": "a run",
    } | changes  # fmt: skip


def verdict(folder: Path, claim: dict[str, Any]) -> str:
    return judge(claim, read_records(folder)).verdict


@pytest.mark.parametrize(("kind", "value"), [("ratio", 0.25), ("saving", 0.75), ("difference", -600)])
def test_figures_of_two_groups(tmp_path: Path, kind: str, value: float) -> None:
    write(tmp_path, record("a", state=200), record("b", state=800), record("c", state=1))
    (figure,) = figures(kind, query(), read_records(tmp_path))
    assert figure.value == pytest.approx(value)
    assert figure.label == "a / b on mlp tiny, 100 steps, cpu"
    assert [one.result.optimizer for one in figure.records] == ["a", "b"]


def test_a_figure_needs_both_sides_in_one_setting(tmp_path: Path) -> None:
    other = record("b", spec={"_target_": "x.Y", "size": "tiny", "batch": 1, "steps": 100})
    write(tmp_path, record("a"), other, record("b", status="diverged"))
    assert not figures("saving", query(), read_records(tmp_path))
    unsound = write(tmp_path / "c", record("a"), record("b", checks={"parameters_moved": False}))
    assert not figures("saving", query(), read_records(unsound))


def test_quality_is_paired_over_seeds_and_one_is_too_few(tmp_path: Path) -> None:
    claim = query(field="quality.final_loss", seeds=True, figure="ratio", holds={"at_most": 1})
    one = write(tmp_path / "one", record("a", loss=0.5), record("b"))
    judged = judge(claim, read_records(one))
    assert (judged.verdict, judged.reason, judged.needs) == (OPEN, ONE_SEED, "more seeds")
    assert judge(claim | {"lacks": "its data"}, read_records(one)).verdict == OPEN
    assert judge(claim, []).needs == "a run"
    pairs = [(0.9, 1.0), (1.1, 1.2), (0.7, 0.8)]
    for seed, (ours, base) in enumerate(pairs):
        worse = [record(name, seed, 9.0, arguments={"lr": 1.0}) for name in ("a", "b")]
        write(tmp_path / "three" / str(seed), record("a", seed, ours), record("b", seed, base), *worse)
    (figure,) = figures("ratio", claim, read_records(tmp_path / "three"))
    # ratios 0.9, 0.91667, 0.875: mean 0.89722, s = 0.020972, t(0.975, 2) = 4.3027
    assert figure.value == pytest.approx(0.897222, abs=1e-5)
    assert figure.low == pytest.approx(0.897222 - 4.3027 * 0.020972 / 3**0.5, abs=1e-4)
    assert verdict(tmp_path / "three", claim) == HOLDS
    assert verdict(tmp_path / "three", claim | {"holds": {"at_most": 0.8}}) == FAILS
    untuned = [one for one in read_records(tmp_path / "three") if one.result.quality.final_loss < 9]
    assert (judge(claim, untuned).verdict, judge(claim, untuned).reason) == (OPEN, ONE_RATE)
    undecided = judge(claim | {"holds": {"at_most": 0.9}}, read_records(tmp_path / "three"))
    assert (undecided.verdict, undecided.reason) == (OPEN, "the interval reaches both sides")


def test_of_several_learning_rates_the_best_is_taken(tmp_path: Path) -> None:
    claim = query(field="quality.final_loss", figure="ratio")
    write(
        tmp_path, *[record("a", loss=loss, arguments={"lr": loss}) for loss in (0.9, 0.3, 0.6)], record("b", loss=0.6)
    )
    (figure,) = figures("ratio", claim, read_records(tmp_path))
    assert figure.value == pytest.approx(0.5)
    chosen = claim | {"of": {"optimizer": "a", "optimizer.lr": 0.9}}
    assert figures("ratio", chosen, read_records(tmp_path))[0].value == pytest.approx(1.5)


def test_a_target_that_was_not_reached_bounds_the_figure(tmp_path: Path) -> None:
    claim = query(field="quality.steps_to_target", unreached="steps", figure="saving", holds={"at_least": 0.1})
    lost = record("a")
    lost["quality"] = lost["quality"] | {"steps_to_target": None}
    write(tmp_path, lost, record("b"))
    judged = judge(claim, read_records(tmp_path))
    assert judged.measured == "at most -1 [-99, -1], target not reached", "100 of 100 steps against 1 to 50"
    assert judged.verdict == FAILS
    assert verdict(tmp_path, claim | {"holds": {"at_least": -99}}) == OPEN, "the best that it could be proves nothing"
    turned = claim | {"of": claim["to"], "to": claim["of"]}
    judged = judge(turned, read_records(tmp_path))
    assert judged.measured == "at least 0.5000 [0.5000, 0.9900], target not reached by the other"
    assert judged.verdict == HOLDS
    assert verdict(tmp_path, turned | {"holds": {"at_most": 0.4}}) == OPEN, "the worst that it could be proves nothing"
    alone = judge(claim | {"seeds": True}, read_records(tmp_path))
    assert (alone.verdict, alone.reason) == (OPEN, ONE_SEED), "a bound of one seed is not judged, and is told as one"
    assert alone.measured.endswith("target not reached")
    ratio = turned | {"figure": "ratio", "holds": {"at_most": 0.5}}
    assert judge(ratio, read_records(tmp_path)).measured.startswith("at most 0.5000 [0.01000, 0.5000]")


def test_steps_to_a_target_are_as_fine_as_evaluations(tmp_path: Path) -> None:
    claim = query(field="quality.steps_to_target", unreached="steps", figure="ratio", holds={"at_least": 0.5})
    write(tmp_path, record("a"), record("b"))
    (figure,) = figures("ratio", claim, read_records(tmp_path))
    assert (figure.value, figure.low, figure.high) == pytest.approx((1, 1 / 50, 50)), "both between steps 1 and 50"
    assert verdict(tmp_path, claim) == OPEN


def test_the_best_learning_rate_for_a_target_is_that_which_reaches_it_first(tmp_path: Path) -> None:
    slow, fast = record("a", loss=0.1, arguments={"lr": 1.0}), record("a", loss=0.9, arguments={"lr": 2.0})
    slow["quality"] = slow["quality"] | {"steps_to_target": 100}
    write(tmp_path, slow, fast)
    (setting,) = settings_of(read_records(tmp_path))
    groups = candidates(setting, {"optimizer": "a"})
    assert best(groups).records[0].result.quality.final_loss == 0.1
    assert best(groups, "quality.steps_to_target").records[0].result.quality.final_loss == 0.9


def test_beside_settings_of_three_seeds_one_of_a_single_seed_decides_nothing(tmp_path: Path) -> None:
    claim = query(field="quality.final_loss", seeds=True, figure="ratio", holds={"at_most": 1})
    other = {"_target_": "optimeter.workloads.T5", "size": "tiny", "steps": 100}
    made = [
        record(name, seed, loss, arguments={"lr": lr})
        for name, loss in (("a", 0.5), ("b", 1.0))
        for seed in (0, 1)
        for lr in (1.0, 2.0)
    ]
    alone = [record(name, 0, loss, spec=other) for name, loss in (("a", 9.0), ("b", 1.0))]
    write(tmp_path, *made, *alone)
    (figure,) = figures("ratio", claim, read_records(tmp_path))
    assert figure.value == pytest.approx(0.5)
    assert verdict(tmp_path, claim) == HOLDS


def test_times_of_separate_runs_have_the_spread_of_their_steps(tmp_path: Path) -> None:
    write(tmp_path, record("a", step=0.01), record("b", step=0.02))
    claim = query(field="time.step.median", figure="ratio", spread=["time.step.p10", "time.step.p90"])
    (figure,) = figures("ratio", claim, read_records(tmp_path))
    assert (figure.value, figure.low, figure.high) == pytest.approx((0.5, 0.009 / 0.024, 0.012 / 0.018))
    assert verdict(tmp_path, claim | {"holds": {"at_most": 0.7}}) == HOLDS
    assert verdict(tmp_path, claim | {"holds": {"at_most": 0.6}}) == OPEN


def test_a_step_has_the_interval_of_its_record(tmp_path: Path) -> None:
    write(tmp_path, step_record("a", shapes=None, measure="step_in_short"))
    claim = query(figure="value", field="step.ratio", low="step.low", high="step.high", holds={"at_most": 1})
    claim |= {"where": {"measure": "step", "baseline": "torch_adamw"}}
    del claim["to"]
    (figure,) = figures("value", claim, read_records(tmp_path))
    assert (figure.value, figure.low, figure.high) == (0.8, 0.78, 0.83)
    assert verdict(tmp_path, claim) == HOLDS


def test_the_share_of_a_fall_and_rows_as_printed(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 1.0, "extra": {"x": 3 - step}} for step in (1, 2, 3)]
    write(tmp_path, record("a", lines=lines))
    (read_back,) = read_records(tmp_path)
    (fall,) = figures("fall", {"of": {"optimizer": "a"}, "by": 50}, [read_back])
    assert fall.value == pytest.approx(0.5), "2.0, 1.5, 1.0"
    printed = {"of": {"optimizer": "a"}, "field": "extra.x", "printed": {1: 2.0, 3: 0.1}, "within": 0.01}
    assert figures("rows", printed, [read_back])[0].value == 1
    assert not figures("rows", printed | {"printed": {1: 2.0, 7: 0.0}}, [read_back]), "a row is missing"


def test_fields_may_be_of_the_first_and_last_sampled_line_or_worked_out(tmp_path: Path) -> None:
    losses = [9.0, 9.0, 1.0, 2.0, 1.0, 2.0]
    lines = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    lines[1] |= {"update_norm": 1.0, "updated": 10.0}
    lines[3] |= {"update_norm": 1.0, "updated": 30.0}
    write(tmp_path, record("a", lines=lines))
    (read_back,) = read_records(tmp_path)
    assert read(read_back, "first.updated / parameters.trainable") == pytest.approx(0.1)
    assert read(read_back, "last.updated") == 30
    assert read(read_back, "unsteadiness") == pytest.approx(1 / 2.0), "jumps of 1 among 2, 1, 2"


@pytest.mark.parametrize(
    ("holds", "figure", "answer"),
    [
        ({"at_least": 1}, Figure(1.0), True),
        ({"at_least": 1}, Figure(0.99), False),
        ({"at_most": 1, "at_least": 0}, Figure(-0.1), False),
        ({"at_least": 1}, Figure(1.5, 1.1, 1.9), True),
        ({"at_least": 1}, Figure(1.5, 0.9, 2.1), None),
        ({"at_least": 1}, Figure(0.5, 0.1, 0.9), False),
        ({"at_least": 1}, Figure(None), None),
        ({"at_least": 1}, Figure(1.5, bound=UNREACHED), None),
        ({"at_least": 1}, Figure(1.5, bound=OUTDONE), True),
        ({"at_least": 1}, Figure(0.5, bound=OUTDONE), None),
        ({"at_least": 1}, Figure(1.5, bound=BOTH), None),
        ({"at_least": 1}, Figure(0.5, bound=BOTH), None),
    ],
)
def test_tolerances(holds: dict[str, float], figure: Figure, answer: bool | None) -> None:
    assert holding(holds, figure) is answer


@pytest.mark.parametrize(
    ("values", "over", "expected"),
    [
        ([2, 2], "all", HOLDS),
        ([2, 0], "all", FAILS),
        ([2, 2, 0], "most", HOLDS),
        ([2, 0], "most", FAILS),
        ([2, None], "all", OPEN),
        ([2, None], "most", OPEN),
    ],
)
def test_settings_are_taken_together(values: list[float | None], over: str, expected: str) -> None:
    found = [Figure(value) for value in values]
    assert verdict_of({"holds": {"at_least": 1}, "over": over}, found)[0] == expected


def test_parts_are_taken_together_and_what_is_lacking_is_said(tmp_path: Path) -> None:
    write(tmp_path, record("a", state=200), record("b", state=800))
    right = {"part": "one", "figure": "arithmetic", "formula": "1 + 1", "holds": {"at_least": 2}}
    wrong = {"part": "two", "figure": "arithmetic", "formula": "1 / 4", "holds": {"at_least": 2}}
    asked = {"part": "three"}
    records = read_records(tmp_path)
    assert judge(query(parts=[right, asked]), records).verdict == HOLDS
    assert judge(query(parts=[right, asked]), []).verdict == OPEN
    assert judge(query(parts=[right, asked]), []).needs == "a run"
    assert judge(query(parts=[asked, asked | {"of": {"optimizer": "c"}}]), records).reason == "", "that of what is open"
    failed = judge(query(parts=[right, wrong, asked]), records)
    assert failed.verdict == FAILS
    assert failed.measured.startswith("one: 1 + 1 = 2; two: 1 / 4 = 0.25")
    lacking = judge(query(lacks="its data"), records)
    assert (lacking.verdict, lacking.reason, lacking.measured) == (ELSEWHERE, "its data", "0.7500")


def answered(folder: Path, name: str = "documents") -> Path:
    layer = {"_target_": "optimeter.workloads.Layer", "shape": [4096, 8192], "batch": 32, "steps": 2}
    made = [
        record(optimizer, workload="layer", spec=layer, state=state, name=name, size=None)
        for optimizer, state in (("adam", 800), ("adam8bit", 203), ("adafactor_momentum", 401))
    ]
    return write(folder, *made)


def test_the_table_has_every_claim_and_leads_to_the_records(tmp_path: Path) -> None:
    table = claims(read_records(answered(tmp_path)))
    assert table is not None
    rows = {row["claim"]: row for row in rows_of(table)}
    assert list(table.columns) == list(COLUMNS)
    assert len(rows) == 67
    assert (rows["M38"]["measured"], rows["M38"]["verdict"]) == ("74.6 %", HOLDS)
    assert rows["M27"]["verdict"] == HOLDS
    assert rows["M29"]["measured"] == "4096 * 8192 + 4096 + 8192 = 33,566,720 floats"
    assert rows["M29"]["verdict"] == FAILS
    assert rows["M08"]["verdict"] == "not measured: published code"
    assert "2ef0759" in rows["M08"]["notes"]
    assert rows["M50"]["verdict"] == OPEN
    assert rows["M50"]["notes"] == "Needs: python bench.py experiment=sparse."
    place = COLUMNS.index("measured")
    cells = {str(row[0].value): row[place] for row in table.rows}
    assert {one.result.optimizer for one in cells["M38"].records} == {"adam", "adam8bit"}
    page = build(tmp_path, [STUDY]).read_text()
    assert "claims: what the documents claim" in page
    assert (tmp_path / "report" / "tables" / "claims.csv").exists()


def test_without_its_records_a_claim_is_not_measured_again(tmp_path: Path) -> None:
    records = read_records(answered(tmp_path))
    alone = [one for one in records if one.result.optimizer != "adam8bit"]
    table = claims(alone)
    assert {row["claim"]: row["verdict"] for row in rows_of(table)}["M38"] == OPEN
    verdicts = {judge(claim, []).verdict for claim in all_claims() if "formula" not in str(claim)}
    assert verdicts == {OPEN}
    only_name = [one for one in records if one.result.optimizer == "adam"]
    assert claims(only_name), "records made for the claims show all of them"


def test_a_sweep_that_answers_no_claim_has_no_table(tmp_path: Path) -> None:
    assert claims(read_records(write(tmp_path, record("adamw"), record("torch_adamw")))) is None
    assert claims([]) is None


T5 = {"_target_": "optimeter.workloads.T5", "size": "tiny", "batch": 16, "steps": 100}
LORA = {"_target_": "optimeter.workloads.SDLora", "size": "tiny", "rank": 16, "steps": 100}


def test_adafactor_against_adam_on_t5(tmp_path: Path) -> None:
    adam = record("adam", workload="t5", spec=T5, optimizer_target="optimeter.optimizers.Adam")
    phases = {"forward": 3_000_000, "backward": 9_000_000, "step": 5_000_000, "overall": 9_000_000}
    adam["memory"] |= {"peak_bytes": phases, "state_bytes": 2_000_000, "transient_bytes": 1_000_000}
    small = record("adafactor", workload="t5", spec=T5, optimizer_target="optimeter.optimizers.Adafactor")
    other = record("lion", workload="t5", spec=T5, optimizer_target="optimeter.optimizers.Lion")
    write(tmp_path, adam, small, other)
    adafactor, adam = rows_of(adafactor_vs_adam(read_records(tmp_path)))
    assert (adam["peak MB"], adam["peak in"], adam["optimizer at most MB"]) == ("9.000", "backward", "3.000")
    assert (adafactor["peak MB"], adafactor["peak in"], adafactor["optimizer at most MB"]) == (
        "300.0",
        "process",
        "–",
    )
    assert (adam["step ms"], adam["final loss"], adam["printed"]) == (
        "10.0 [9.00, 12.0]",
        "1.000",
        "2.1 s a step, 32 GB",
    )
    alone = write(
        tmp_path / "one", record("adam", workload="t5", spec=T5, optimizer_target="optimeter.optimizers.Adam")
    )
    assert adafactor_vs_adam(read_records(alone)) is None


def test_lora_against_both_references(tmp_path: Path) -> None:
    targets = {
        "adamw": "optimeter.optimizers.AdamW",
        "adamw8bit": "optimeter.optimizers.AdamW8bit",
        "custom_adamw": "optimeter.optimizers.CustomAdamW",
    }
    losses = {"adamw": 1.0, "adamw8bit": 1.25, "custom_adamw": 0.5}
    made = [
        record(name, seed, losses[name] + seed, workload="sd_lora", spec=LORA, optimizer_target=target)
        for name, target in targets.items()
        for seed in (0, 1)
    ]
    write(tmp_path, *made)
    records = read_records(tmp_path)
    rows = {row["optimizer"]: row for row in rows_of(lora_comparison(records))}
    assert rows["custom_adamw"]["final loss"] == "1.000 (median of 2)"
    assert rows["custom_adamw"]["training s"] == "1.000", "of its last evaluation"
    assert rows["custom_adamw"]["printed"] == "0.171, 48 min, 13 GB"
    summary = {(row["optimizer"], row["against"]): row for row in rows_of(lora_summary(records))}
    assert len(summary) == 4
    own = summary["custom_adamw", "AdamW: adamw"]
    assert own["final loss"].startswith("-37.5 % ["), "0.5/1 and 1.5/2"
    assert (own["state"], own["steps to target"]) == ("+0.0 %", "+0.0 % [-98.0, +4,900.0]")
    assert own["printed"].startswith("memory −45 %")
    assert "claims" not in {row["optimizer"] for row in rows.values()}
    assert lora_comparison([]) is None
    assert lora_summary([]) is None


def test_settings_are_described_in_words(tmp_path: Path) -> None:
    (setting,) = settings_of(read_records(answered(tmp_path)))
    assert described(setting) == "layer 4096×8192, 100 steps, cpu"

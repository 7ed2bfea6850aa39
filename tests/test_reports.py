"""Reports from records that the tests write: right numbers, honest failures, everything escaped, one page."""

import csv
import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from optimeter.measure.records.folder import Place
from optimeter.measure.records.read import checked, read_records
from optimeter.measure.records.schema import SCHEMA, Result
from optimeter.measure.records.write import finite
from optimeter.reports.__main__ import main
from optimeter.reports.compare import compare
from optimeter.reports.comparison import comparison, summary
from optimeter.reports.documents.layer import layer_memory
from optimeter.reports.documents.sparse import sparse_vs_dense
from optimeter.reports.documents.trace import toy_trace
from optimeter.reports.group import settings_of
from optimeter.reports.kinds import is_of
from optimeter.reports.overhead import monitor_overhead
from optimeter.reports.page import build
from optimeter.reports.paired import paired_difference
from optimeter.reports.plots import dominated, visible
from optimeter.reports.plugins import make_tables
from optimeter.reports.steps import optimizer_steps
from optimeter.reports.table import Cell, Table, number, percent
from tests.conftest import STUDY

CONFIG = {
    "name": "made", "seed": 0, "device": "auto", "dtype": "float32", "steps": 100, "schedule": "constant",
    "warmup_steps": 0, "clip_norm": None, "accumulate": 1, "eval_every": 50, "record_every": 1, "limit_seconds": None,
    "baseline": "torch_adamw", "measure": {"_target_": "optimeter.measure.methods.Train"},
}  # fmt: skip
OTHER = {"_target_": "optimeter.workloads.MLP", "size": "tiny", "steps": 100}
SHAPED_BY = {"embedding": ["rows", "dim"], "layer": ["shape"], "sd_lora": ["rank"]}
ADAM = {"optimizer_target": "optimeter.optimizers.Adam"}
ENVIRONMENT = {"cpu": {"model": "a processor", "logical_cores": 2}, "gpu": None, "packages": {"torch": "2.13.0"}}


def spread(median: float) -> dict[str, Any]:
    return {"median": median, "p10": 0.9 * median, "p90": 1.2 * median, "n": 90}


def record(
    optimizer: str = "adamw",
    seed: int = 0,
    loss: float | None = 1.0,
    step: float = 0.01,
    state: int = 800,
    **changes: Any,
) -> dict[str, Any]:
    """A result as bench.py writes it."""
    workload = changes.pop("workload", "mlp")
    arguments = changes.pop("arguments", {"lr": 1e-3})
    spec = changes.pop("spec", {"_target_": "optimeter.workloads.MLP", "size": "tiny", "batch": 128, "steps": 100})
    evaluations = [{"step": s, "seconds": s * step, "loss": 2 - s / 100, "score": 0.5} for s in (0, 50, 100)]
    config = CONFIG | {"seed": seed, "optimizer": {"_target_": "x.Y", **arguments}, "workload": spec}
    result = {
        "schema": 2, "run": "0" * 12, "name": "made", "measure": "train", "status": "ok", "reason": None,
        "optimizer": optimizer, "optimizer_target": "x.Y", "workload": workload, "size": "tiny", "seed": seed,
        "shaped_by": SHAPED_BY.get(workload, []), "follows": ["sparse"] if workload == "embedding" else [],
        "device": "cpu", "dtype": "float32", "steps": 100, "command": "python bench.py", "config": config,
        "environment": ENVIRONMENT, "gpu": None, "compiled": False, "data": {},
        "parameters": {"count": 100, "trainable": 100, "bytes": 400},
        "memory": {"state_bytes": state, "state_bytes_per_parameter": state / 100, "state_8bit_share": 0.0,
                   "predicted_state_bytes": state, "gradient_bytes": 400, "process_peak_bytes": 300_000_000},
        "time": {"step": spread(step), "optimizer": spread(step / 4), "wall": 2.0},
        "quality": {"first_loss": 2.0, "final_loss": loss, "score": 0.9, "score_name": "accuracy",
                    "steps_to_target": 50, "evaluations": evaluations},
        "checks": {}, "started": "2026-11-20T10:00:00+00:00", "finished": "2026-11-20T10:00:02+00:00",
    }  # fmt: skip
    return result | changes


def of_measure(made: dict[str, Any], target: str, **changes: Any) -> dict[str, Any]:
    """The record as of a measure of this class, which trains nothing."""
    return made | {"config": made["config"] | {"measure": {"_target_": target}}, "quality": None} | changes


def write(folder: Path, *results: dict[str, Any]) -> Path:
    for index, result in enumerate(results):
        place = Place(folder, f"run-{index:04d}")
        place.begin("seed: 0\n")
        (place.part / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in result.pop("lines", [])))
        place.commit(as_read(result))
    return folder


def as_read(plain: dict[str, Any]) -> Result:
    """The result that a reader of this JSON has."""
    missing = dict(plain.get("missing") or {})
    clean = finite({name: part for name, part in plain.items() if part is not None}, missing)
    return checked(json.loads(json.dumps({"schema": SCHEMA} | clean | {"missing": missing})))


def table_of(folder: Path) -> list[dict[str, str]]:
    (setting,) = settings_of(read_records(folder))
    table = comparison(setting, 1)
    return [dict(zip(table.columns, (cell.shown for cell in row), strict=True)) for row in table.rows]


def test_the_comparison_has_the_medians_and_the_paired_interval(tmp_path: Path) -> None:
    for seed, (base, ours) in enumerate([(1.0, 0.9), (1.2, 1.05), (0.8, 0.72)]):
        write(
            tmp_path / str(seed), record("torch_adamw", seed, base), record("adamw", seed, ours, step=0.02, state=200)
        )
    ours, base = table_of(tmp_path)
    assert base["loss vs baseline"] == "baseline"
    assert (ours["optimizer"], ours["status"], ours["steps/s"]) == ("adamw", "ok 3/3", "50.0")
    assert ours["final loss"] == "0.9000"
    assert ours["spread"] == "30 % unstable"
    assert ours["B/parameter"] == "2.000"
    # differences −0.1, −0.15, −0.08: mean −0.11, t(0.975, 2) = 4.3027, s/√3 = 0.020817
    assert ours["loss vs baseline"] == "-0.11 [-0.2, -0.0204]"
    assert ours["told apart"] == "lower"


def test_canary_the_baseline_entered_twice_is_not_told_apart(tmp_path: Path) -> None:
    write(
        tmp_path,
        *[record(name, seed, 1 + seed / 7) for name in ("torch_adamw", "torch_adamw_again") for seed in range(3)],
    )
    again = table_of(tmp_path)[1]
    assert (again["loss vs baseline"], again["told apart"]) == ("identical", "no")
    noisy = tmp_path / "noisy"
    write(noisy, *[record("torch_adamw", seed, 1 + seed / 7) for seed in range(3)])
    write(noisy / "b", *[record("again", seed, 1 + seed / 7 + 1e-3 * (-1) ** seed) for seed in range(3)])
    assert table_of(noisy)[0]["told apart"] == "no"


def test_one_seed_has_no_interval_and_only_common_seeds_are_paired(tmp_path: Path) -> None:
    write(tmp_path, record("torch_adamw", 0, 1.0), record("adamw", 0, 0.5), record("adamw", 1, 9.0))
    (setting,) = settings_of(read_records(tmp_path))
    difference, used = paired_difference(setting.groups[0], setting.groups[1])
    assert difference is not None
    assert (difference.shown(), difference.verdict(), len(used)) == ("-0.5", "", 2)


def test_an_optimizer_whose_every_seed_diverged_keeps_its_row(tmp_path: Path) -> None:
    lost = [record("sgd", seed, None, status="diverged", reason="at step 3") for seed in range(3)]
    write(
        tmp_path,
        record("torch_adamw"),
        *lost,
        record("broken", status="error", reason="no", memory=None, time=None, quality=None),
    )
    rows = {row["optimizer"]: row for row in table_of(tmp_path)}
    assert rows["sgd"]["status"] == "diverged 3/3"
    assert rows["sgd"]["final loss"] == "–"
    assert rows["broken"]["status"] == "error"
    page = build(tmp_path).read_text()
    assert "at step 3" in page


def test_what_differs_is_never_mixed(tmp_path: Path) -> None:
    other_data = record("adamw", data={"topics.py": "abc"})
    other_torch = record("adamw", environment=ENVIRONMENT | {"packages": {"torch": "2.11.0"}})
    other_batch = record(
        "adamw", spec={"_target_": "optimeter.workloads.MLP", "size": "tiny", "batch": 64, "steps": 100}
    )
    write(tmp_path, record("adamw"), other_data, other_torch, other_batch)
    found = settings_of(read_records(tmp_path))
    assert len(found) == 4
    assert len({setting.label for setting in found}) == 4
    assert any("batch=64" in setting.label for setting in found)


def test_one_name_with_two_arguments_is_two_rows_and_an_edit_replaces(tmp_path: Path) -> None:
    old = record("adamw", loss=5.0, finished="2026-11-20T09:00:00+00:00")
    write(tmp_path, old, record("adamw", loss=1.0), record("adamw", loss=0.7, arguments={"lr": 1e-2}))
    rows = table_of(tmp_path)
    assert [(row["optimizer"], row["final loss"]) for row in rows] == [
        ("adamw (lr=0.001)", "1.000"),
        ("adamw (lr=0.01)", "0.7000"),
    ]


def test_runs_of_one_seed_recorded_differently_count_once(tmp_path: Path) -> None:
    again = record("adamw", loss=3.0, finished="2026-11-21T10:00:00+00:00")
    again["config"] = again["config"] | {"record_every": 10, "eval_every": 25}
    write(tmp_path, record("adamw", loss=1.0), again)
    (row,) = table_of(tmp_path)
    assert (row["status"], row["final loss"]) == ("ok", "3.000")


def test_a_seed_that_reaches_nothing_gives_no_interval(tmp_path: Path) -> None:
    write(
        tmp_path, *[record(name, seed, 1.0 + (name == "adamw")) for name in ("torch_adamw", "adamw") for seed in (0, 1)]
    )
    row = table_of(tmp_path)[0]
    assert row["loss vs baseline"] == "+1 for every seed"
    assert "told apart" not in row, "a column without a value goes"


@pytest.mark.parametrize(
    ("checks", "words"),
    [
        ({"parameters_moved": False}, "never moved"),
        ({"frozen_unchanged": False}, "a frozen parameter moved"),
        ({"finite": False}, "not finite"),
        ({"state_grew": True}, "kept growing"),
    ],
)
def test_canary_what_failed_a_check_is_shown_and_never_the_best(
    tmp_path: Path, checks: dict[str, bool], words: str
) -> None:
    cheat = record("cheat", loss=0.01, step=1e-4, state=0, checks=checks)
    write(tmp_path, cheat, record("torch_adamw", loss=0.5), record("adamw", loss=0.6, step=0.02))
    (setting,) = settings_of(read_records(tmp_path))
    assert not setting.groups[1].sound
    assert table_of(tmp_path)[1]["status"].startswith("ok; INVALID: ")
    assert words in table_of(tmp_path)[1]["status"]
    assert "cheat" not in summary(setting)
    assert "Lowest final loss: torch_adamw" in summary(setting)
    page = build(tmp_path).read_text()
    assert words in page.partition('id="failures"')[2].partition("</section>")[0]


def test_an_invalid_baseline_is_no_baseline(tmp_path: Path) -> None:
    write(tmp_path, record("torch_adamw", checks={"parameters_moved": False}), record("adamw"))
    (setting,) = settings_of(read_records(tmp_path))
    assert setting.baseline is None
    assert any("baseline torch_adamw is not here" in note for note in comparison(setting, 1).notes)


def test_the_summary_leaves_out_survivors_and_names_ties(tmp_path: Path) -> None:
    lucky = [record("lucky", 0, 0.1), record("lucky", 1, None, status="diverged")]
    steady = [record(name, seed, 1 + seed / 10, step=0.010 + 1e-4 * (name == "b")) for name in "ab" for seed in (0, 1)]
    write(tmp_path, *lucky, *steady)
    (setting,) = settings_of(read_records(tmp_path))
    said = summary(setting)
    assert "lucky" not in said
    assert "Left out: 1" in said
    assert "Shortest median step: a, 10.0 ms; b as good." in said


ODD: list[Any] = [
    [], 3, {}, {"status": "fine"}, {"status": "ok"}, {"status": "ok", "schema": 99}, {"status": "ok", "time": 3},
    record(config={"optimizer": 3, "workload": None}), record(config=None), record(environment=None),
    record(memory=None, time=None, quality=None), record(quality={"evaluations": [None, 3, {"step": 1}]}),
    record(quality={"evaluations": [{"step": s, "seconds": s, "loss": None} for s in range(5)], "final_loss": None}),
    record(seed="x"), record(seed=None), record(optimizer=None), record(checks=None), record(finished=None),
    record(size=None, data=None, parameters=None), record(lines=[3, None, [], {"a": 1}, {"step": 1}] * 3),
    record(lines=[{"step": s, "loss": None, "gradient": None, "memory": 3} for s in range(5)]),
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_an_odd_record_is_a_row_or_a_line_and_stops_nothing(
    tmp_path: Path, odd: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a", record("torch_adamw"))
    place = Place(tmp_path / "b", "odd-mlp-1")
    place.begin("seed: 0\n")
    lines = odd.get("lines", []) if isinstance(odd, dict) else []
    (place.part / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place.part / "result.json").write_text(json.dumps(odd))
    page = build(tmp_path).read_text()
    assert ("odd-mlp-1" in page) != ("odd-mlp-1" in capsys.readouterr().err)


def test_a_run_under_way_is_shown_as_what_it_is(tmp_path: Path) -> None:
    config = CONFIG | {"seed": 7, "optimizer": {"_target_": "x.Y"}, "workload": {"_target_": "optimeter.workloads.MLP"}}
    Place(tmp_path, "x-y-1").begin(
        json.dumps(config | {"choices": {"optimizer": "adamw", "workload": "mlp", "measure": "train"}})
    )
    (made,) = read_records(tmp_path)
    assert {key: getattr(made.result, key) for key in ("status", "optimizer", "workload", "seed", "measure")} == {
        "status": "interrupted", "optimizer": "adamw", "workload": "mlp", "seed": 7, "measure": "train",
    }  # fmt: skip
    assert ">None<" not in build(tmp_path).read_text()


def test_a_report_never_deletes_a_record_or_the_report_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, record())
    before = build(tmp_path).read_text()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr("optimeter.reports.page.comparison", lambda *_: (_ for _ in ()).throw(RuntimeError))
        build(tmp_path)
    assert (tmp_path / "report/index.html").read_text() == before
    write(tmp_path / "report", record())
    with pytest.raises(FileExistsError, match="there are records in it"):
        build(tmp_path)
    assert len(read_records(tmp_path)) == 2


OVERHEAD = "optimeter.measure.methods.Overhead"


@pytest.mark.parametrize(
    ("measure", "target", "block"),
    [
        ("step", "optimeter.measure.methods.Step", {"ratio": 0.9}),
        ("step", "optimeter.measure.methods.step.Step", {"ratio": 0.9}),
        ("plan", "optimeter.measure.methods.Plan", {"total_bytes": 8}),
        ("overhead", "optimeter.measure.methods.Overhead", {"low": 0.1}),
        ("step", "theirs.Step", {"ratio": 0.9}),
        ("train", "optimeter.measure.methods.Train", None),
    ],
)
def test_a_measure_is_told_by_what_the_record_holds_whatever_its_yaml_is_called(
    measure: str, target: str, block: dict[str, Any] | None
) -> None:
    failed = as_read(of_measure(record(), target, measure="quick", status="error"))
    made = record(measure="quick") if block is None else of_measure(record(), target, **{measure: block})
    done = as_read(made)
    for other in ("train", "step", "plan", "overhead"):
        assert is_of(done, other) == (other == measure)
        assert is_of(failed, other) == (other == measure and not target.startswith("theirs"))
    assert is_of(failed, "quick")


def test_a_measure_by_another_name_is_in_its_table(tmp_path: Path) -> None:
    target = "optimeter.measure.methods.Step"
    done = of_measure(record("adamw"), target, measure="quick_step", step={"ratio": 0.8})
    failed = of_measure(record("lion"), target, measure="quick_step", status="oom")
    table = optimizer_steps(read_records(write(tmp_path, done, failed)))
    assert table
    column = table.columns.index("status")
    assert {(row[0].shown, row[column].shown) for row in table.rows} == {("adamw", "ok"), ("lion", "oom")}
    assert settings_of(read_records(tmp_path)) == []


def test_compare_pairs_by_seed_and_matches_across_machines(tmp_path: Path) -> None:
    there = {"cpu": {"model": "another"}, "packages": {"torch": "2.11.0"}}
    for seed in range(3):
        write(tmp_path / f"a/{seed}", record("adamw", seed, 1 + seed), of_measure(record("adamw", seed), OVERHEAD))
        write(tmp_path / f"b/{seed}", record("adamw", seed, 1.5 + seed, step=0.03, environment=there))
    table = compare(read_records(tmp_path / "a"), read_records(tmp_path / "b"), ("a", "b"))
    (row,) = [dict(zip(table.columns, (cell.shown for cell in row), strict=True)) for row in table.rows]
    assert row["step ms: B / A"] == "3.000"
    assert row["final loss: B − A"] == "+0.5 [+0.5, +0.5]"
    assert len(set(table.columns)) == len(table.columns)
    assert "another, torch 2.11.0" in table.notes[0]


def test_toy_trace_has_the_runs_values_and_the_printed_ones(tmp_path: Path) -> None:
    spec = {
        "_target_": "optimeter.workloads.Toy",
        "polynomial": [1, 3, 0, 0, 2],
        "start": 3.0,
        "dimension": 1,
        "steps": 100,
    }
    lines = [{"step": step, "extra": {"x": 3 - step / 10, "f": float(step)}} for step in range(1, 101)]
    write(tmp_path, record("adam", workload="toy", spec=spec, arguments={"lr": 0.1}, lines=lines, **ADAM))
    table = toy_trace(read_records(tmp_path))
    assert table is not None
    rows = {row[0].value: [cell.shown for cell in row[1:]] for row in table.rows}
    assert rows[0] == ["2.9000", "1.00", "2.7272", "143.58"]
    assert rows[90] == ["-6.1000", "91.00", "-1.8910", "-1.97"]
    assert "wrong" in table.notes[0]
    assert toy_trace([]) is None


def test_layer_memory_counts_floats(tmp_path: Path) -> None:
    spec = {"_target_": "optimeter.workloads.Layer", "shape": [4096, 8192], "batch": 32, "steps": 2}
    write(
        tmp_path,
        *[
            record(name, workload="layer", spec=spec, state=state)
            for name, state in (("adam", 268435456), ("adafactor", 49152))
        ],
    )
    table = layer_memory(read_records(tmp_path))
    assert table is not None
    rows = [dict(zip(table.columns, (cell.shown for cell in row), strict=True)) for row in table.rows]
    assert [(row["optimizer"], row["floats"], row["of Adam's"]) for row in rows] == [
        ("adafactor", "12,288", "0.02 %"),
        ("adam", "67,108,864", "100.00 %"),
    ]


def test_sparse_vs_dense_needs_both(tmp_path: Path) -> None:
    def run(name: str, sparse: bool, rows: int) -> dict[str, Any]:
        spec = {"_target_": "optimeter.workloads.Embedding", "rows": rows, "dim": 16, "sparse": sparse, "steps": 60}
        parameters = {"count": 32 * rows, "trainable": 32 * rows, "bytes": 0}
        target = "optimeter.optimizers.SparseAdam" if sparse else "optimeter.optimizers.Adam"
        return record(name, workload="embedding", spec=spec, parameters=parameters, optimizer_target=target)

    write(tmp_path, run("adam", False, 10**4), run("adam", False, 10**6), run("sparse_adam", True, 10**6))
    table = sparse_vs_dense(read_records(tmp_path))
    assert table is not None
    rows = [dict(zip(table.columns, (cell.shown for cell in row), strict=True)) for row in table.rows]
    assert [(row["rows of a table"], row["optimizer"], row["gradients"]) for row in rows] == [
        ("1,000,000", "adam", "dense"), ("1,000,000", "sparse_adam", "sparse"),
    ]  # fmt: skip


def test_overhead_is_a_table(tmp_path: Path) -> None:
    part = {"difference": 0.01, "low": 0.005, "high": 0.015, "pairs": 40}
    parts = dict.fromkeys(("off", "on", "+1 %", "+2 %"), part)
    found = {"comparisons": parts, "sampling_share": 0.004, "verdict": "not resolved: off/off is not 0"}
    write(tmp_path, record(measure="overhead", overhead=found))
    table = monitor_overhead(read_records(tmp_path))
    assert table is not None
    assert table.rows[0][2].shown == "+1.00% [+0.50%, +1.50%]"
    assert table.rows[0][-1].shown.startswith("not resolved")
    assert "not resolved" in build(tmp_path).read_text()


EVIL = ["<script>alert(1)</script>", "a|b", "=cmd()", "null", "NA", "_hidden", "x$y$z", 'q"uote', "`tick`", "-1+1"]


def test_every_text_is_shown_as_text(tmp_path: Path) -> None:
    results = [record(name, reason=name, name=name, command=name) for name in EVIL]
    results += [record("bad", seed=9, status="error", reason=EVIL[0])]
    write(tmp_path, *results)
    page = build(tmp_path).read_text()
    assert page.count("<script>") == 1, "our own"
    assert html.escape(EVIL[0]) in page
    markdown = next((tmp_path / "report/tables").glob("comparison-1.md")).read_text()
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == len(EVIL) + 3
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, "a pipe in a name ends no cell"
    cells = list(csv.reader(io.StringIO((tmp_path / "report/tables/comparison-1.csv").read_text())))
    assert len({len(row) for row in cells}) == 1
    assert not any(cell.startswith(("=", "+", "@")) for row in cells[1:] for cell in row[:2])


def test_the_page_asks_nothing_of_any_network(tmp_path: Path) -> None:
    write(tmp_path, record("torch_adamw"), record("adamw", loss=0.5))
    page = build(tmp_path).read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "@import" not in page
    anchors = set(re.findall(r'id="([^"]+)"', page))
    links = re.findall(r'href="#([^"]+)"', page)
    assert links
    assert set(links) <= anchors, "every link leads somewhere"
    for path in re.findall(r'href="(\.\./[^"]+)"', page):
        assert (tmp_path / "report" / path).exists()


def test_every_number_of_a_comparison_leads_to_its_records(tmp_path: Path) -> None:
    write(tmp_path, *[record(name, seed, seed + 1.0) for name in ("torch_adamw", "adamw") for seed in range(2)])
    (setting,) = settings_of(read_records(tmp_path))
    for row in comparison(setting, 1).rows:
        for cell in row:
            assert cell.records or not isinstance(cell.value, (int, float))


def test_all_tables_can_do_without_records() -> None:
    made = make_tables([], [STUDY])
    assert (made.tables, made.problems) == ([], [])


def test_the_report_is_rebuilt_over_an_old_one_and_half_a_sweep(tmp_path: Path) -> None:
    write(tmp_path, record("torch_adamw"))
    Place(tmp_path, "adamw-mlp-under-way").begin("seed: 1\n")
    first = build(tmp_path).read_text()
    assert "no result yet" in first
    assert build(tmp_path).read_text() == first


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a", record("adamw")), write(tmp_path / "b", record("adamw", step=0.02), record("adam"))
    assert main([str(a)]) == 0
    assert capsys.readouterr().out == f"report: {a}/report/index.html\n"
    assert main(["compare", str(a), str(b)]) == 0
    shown = capsys.readouterr().out
    assert "2.000" in shown
    assert "not there" in shown
    (tmp_path / "other").mkdir()
    assert main(["compare", str(a), str(tmp_path / "other")]) == 1
    assert "no training runs" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing")]) == 1
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 1
    assert "no records" in capsys.readouterr().err
    assert main([]) == 1


def test_numbers_are_short_and_true() -> None:
    assert [number(x, 3) for x in (0, 1234567, 12.345, 0.00123456, 1e-7, -2.5, 9.996, 99.96, None)] == [
        "0", "1,234,567", "12.3", "0.00123", "1e-07", "-2.50", "10.0", "100", "–",
    ]  # fmt: skip
    assert (percent(0.123), percent(0.12345, 2), percent(None)) == ("12 %", "12.35 %", "–")
    assert Table("t", "a|b", ["c"], [[Cell(None)], [Cell("x\ny")]]).markdown().count("\n| ") == 4
    steering = Table("t", "t", ["c"], [[Cell("\x1b[31m\0x")]])
    assert not {"\x1b", "\0"} & set(steering.markdown() + steering.csv()), "what would steer a terminal"


def test_pareto() -> None:
    points = [(1, 1, 3), (2, 2, 1), (2, 2, 2), (1, 1, 3)]
    assert [dominated(point, points) for point in points] == [False, False, True, False]
    assert [visible(label) for label in ("_x", "$a$", "___")] == ["x", r"\$a\$", "unnamed"]


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """
<script>
addEventListener("load", () => {
  const rows = () => [...document.querySelector("table").tBodies[0].rows].map(row => row.cells[0].textContent);
  const before = rows();
  const heading = [...document.querySelectorAll("th button")].find(button => button.textContent === "final loss");
  heading.click(); const up = rows(); heading.click(); const down = rows();
  document.querySelector("td a").click();
  const opened = () => document.querySelectorAll("details[open]").length;
  setTimeout(() => { document.title = JSON.stringify({before, up, down, opened: opened(),
    requests: performance.getEntriesByType("resource").map(entry => entry.name), scripts: window.pwned || 0}); }, 300);
});
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here; .ci/run installs it")
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    """Show 12: no console error, no request, columns sort, a number leads to its record, a script in a name is text."""
    evil = "<script>window.pwned = 1</script>"
    write(tmp_path, record("torch_adamw", loss=2.0), record(evil, loss=1.0), record("a|b", loss=3.0))
    page = build(tmp_path, [STUDY])
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text() + PROBE)
    assert BROWSER
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000"),
        *("--dump-dom", probed.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not console
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]))  # type: ignore[index]
    assert found["up"] == [evil, "torch_adamw", "a|b"]
    assert found["down"] == found["up"][::-1]
    assert found["opened"] == 1
    assert found["requests"] == []
    assert found["scripts"] == 0


@pytest.mark.parametrize(("few", "many"), [(4, 30), pytest.param(20, 300, marks=pytest.mark.thorough)])
def test_a_thousand_records_make_a_page(tmp_path: Path, few: int, many: int) -> None:
    """As few optimizers with many seeds, as one seed of many, and as many settings; a tenth of them in `make test`."""
    rates = [{"lr": 1e-3 * (index + 1)} for index in range(few)]
    seeds = [record("adamw", seed, 1 + seed / 100, arguments=lr) for seed in range(20) for lr in rates]
    names = [record(f"optimizer_{index}", spec=OTHER | {"batch": 1}) for index in range(many)]
    batches = [record(spec=OTHER | {"batch": index + 2}) for index in range(many)]
    write(tmp_path, *seeds, *names, *batches)
    page = build(tmp_path, [STUDY]).read_text()
    assert len(page) < 20e6
    assert "Pictures are of the first" in page


def test_what_follows_the_optimizer_is_no_condition_and_makes_another_optimizer(tmp_path: Path) -> None:
    """A run that failed before its workload was built is compared with the others all the same."""
    spec = {"_target_": "optimeter.workloads.Embedding", "dim": 16, "steps": 60}
    runs = [record(name, workload="embedding", spec=spec | {"sparse": name == "b"}) for name in "ab"]
    early = record("c", workload="embedding", spec=spec | {"sparse": True}, status="crashed", follows=[])
    both = record("a", workload="embedding", spec=spec | {"sparse": True})
    write(tmp_path, *runs, early, both)
    (setting,) = settings_of(read_records(tmp_path))
    assert [group.label for group in setting.groups] == ["a (sparse=False)", "a (sparse=True)", "b", "c"]

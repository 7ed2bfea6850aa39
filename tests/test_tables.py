"""Tables of steps, of relative memory and of weight decay, from records that the tests write."""

from pathlib import Path
from typing import Any

import pytest

from optimeter.measure.records.read import read_records
from optimeter.reports.documents.decay import floor_step, share, weight_decay_curve
from optimeter.reports.documents.relative import relative_memory
from optimeter.reports.page import build
from optimeter.reports.steps import optimizer_steps
from optimeter.reports.table import Table
from tests.conftest import STUDY
from tests.test_reports import record, spread, write

LAYER = {"_target_": "optimeter.workloads.Layer", "shape": [1024, 1024], "batch": 32, "steps": 8}
DECAY = {"wd_transition_steps": 1000, "wd_decay_factor": 0.7, "wd_min_ratio": 0.1}


def rows_of(table: Table | None) -> list[dict[str, str]]:
    assert table is not None
    return [dict(zip(table.columns, (cell.shown for cell in row), strict=True)) for row in table.rows]


def step_record(optimizer: str, shapes: str | None = "8x4", **changes: Any) -> dict[str, Any]:
    side = {"seconds": spread(0.002), "host_seconds": spread(0.001), "first_step": 0.5, "bytes_per_parameter": 28.0}
    side |= {"copy_share": 0.625, "fits_in_cache": False}
    found = {
        "verdict": "FAST", "ratio": 0.8, "low": 0.78, "high": 0.83, "confidence": 0.99, "delta": 0.05, "pairs": 24,
        "candidate": side, "baseline": side | {"copy_share": 1.25, "fits_in_cache": True},
        "notes": {"clock": "not shown", "curvature": f"{optimizer} does more now and then"},
    }  # fmt: skip
    made = record(optimizer, measure="step", workload="shapes" if shapes else "mlp", quality=None)
    made["config"] = made["config"] | {"measure": {"_target_": "optimeter.measure.methods.Step", "shapes": shapes}}
    return made | {"step": found, "time": {"step": None, "wall": 12.0}} | changes


def test_steps_have_ratio_verdict_and_bandwidth(tmp_path: Path) -> None:
    write(tmp_path, step_record("adamw"), step_record("adam", shapes=None))
    table = optimizer_steps(read_records(tmp_path))
    by_shapes, on_workload = rows_of(table)
    assert (by_shapes["on"], on_workload["on"]) == ("8x4", "mlp tiny")
    assert (by_shapes["optimizer"], by_shapes["baseline"]) == ("adamw", "torch_adamw")
    assert by_shapes["step ms"] == "2.00 [1.80, 2.40]"
    assert (by_shapes["ratio"], by_shapes["verdict"]) == ("0.800 [0.780, 0.830]", "FAST")
    assert (by_shapes["B/parameter moved"], by_shapes["pairs"]) == ("28.00", "24")
    assert (by_shapes["share of copy"], by_shapes["baseline's share"]) == ("62.5 %", "125.0 %, cached")
    assert "host ms" not in by_shapes, "nothing waits on a CPU"
    assert table
    assert "δ = 0.05, intervals of 99%." in table.notes
    assert "adamw does more now and then" in table.notes
    assert "not shown" not in table.notes
    assert all(cell.records for row in table.rows for cell in row)
    page = build(tmp_path).read_text()
    assert "optimizer_steps: " in page
    assert "0.800 [0.780, 0.830]" in page


def test_on_a_gpu_the_hosts_time_stands_beside(tmp_path: Path) -> None:
    on_gpu = step_record("adamw", device="cuda")
    on_gpu["environment"] = on_gpu["environment"] | {"gpu": {"name": "H100"}}
    write(tmp_path, on_gpu, step_record("adam"))
    assert [row["host ms"] for row in rows_of(optimizer_steps(read_records(tmp_path)))] == ["–", "1.00 [0.900, 1.20]"]


def test_a_step_that_failed_or_is_invalid_keeps_its_row_and_has_no_verdict(tmp_path: Path) -> None:
    write(
        tmp_path,
        step_record("idle", checks={"parameters_moved": False}),
        step_record("other", checks={"baseline_sound": False}),
        step_record("broken", status="unsupported", reason="no", step=None),
    )
    rows = {row["optimizer"]: row for row in rows_of(optimizer_steps(read_records(tmp_path)))}
    assert rows["broken"]["status"] == "unsupported"
    assert rows["idle"]["status"] == "ok; INVALID: a parameter that should train never moved"
    assert "the baseline's parameters did not move" in rows["other"]["status"]
    assert [rows[name]["verdict"] for name in ("idle", "other", "broken")] == ["INVALID", "INVALID", "–"]
    page = build(tmp_path).read_text()
    assert "never moved" in page.partition('id="failures"')[2].partition("</section>")[0]


def test_steps_of_one_name_are_told_apart_by_their_arguments(tmp_path: Path) -> None:
    write(tmp_path, step_record("adamw"))
    other = step_record("adamw")
    other["config"] = other["config"] | {"optimizer": {"_target_": "x.Y", "lr": 1.0}}
    write(tmp_path / "b", other)
    assert [row["optimizer"] for row in rows_of(optimizer_steps(read_records(tmp_path)))] == [
        "adamw (lr=0.001)",
        "adamw (lr=1.0)",
    ]


def state_of(name: str, state: float, steps: int = 8, warm_up: int | None = 500, **changes: Any) -> dict[str, Any]:
    arguments = {"lr": 1e-6} | ({} if warm_up is None else {"warmup_steps": warm_up}) | changes.pop("arguments", {})
    memory = {"state_bytes": int(state * 2**20), "state_bytes_per_parameter": state}
    made = record(name, workload="layer", spec=LAYER, arguments=arguments, memory=memory, steps=steps)
    return made | {"parameters": {"count": 2**20, "trainable": 2**20, "bytes": 2**22}} | changes


def test_relative_memory_has_both_phases_and_both_references(tmp_path: Path) -> None:
    write(
        tmp_path,
        state_of("automagic_cameamp", 21.0),
        state_of("automagic_cameamp", 16.0, warm_up=4),
        state_of("automagic_cameamp8bit", 5.25),
        state_of("automagic_cameamp_coptim", 42.0),
        state_of("automagic_cameamp_coptim8bit", 10.5),
        state_of("adamw", 8.0, warm_up=None),
        state_of("torch_adamw", 8.0, warm_up=None, optimizer_target="torch.optim.AdamW"),
        state_of("automagic_cameamp_coptim8bit", 0, warm_up=9, status="error", memory=None),
    )
    rows = {row["optimizer"]: row for row in rows_of(relative_memory(read_records(tmp_path)))}
    family = [f"automagic_cameamp{end}" for end in ("", "8bit", "_coptim", "_coptim8bit")]
    assert list(rows) == [*family, "adamw"]
    full, small, wide = (rows[f"automagic_cameamp{end}"] for end in ("", "8bit", "_coptim8bit"))
    assert full["on"] == "layer 1024×1024, float32, cpu"
    assert (full["warm-up: B/parameter"], full["after: B/parameter"]) == ("21.00", "16.00")
    assert small["warm-up: of CameAMP"] == small["warm-up: of own 32-bit"] == "25.0 %"
    assert small["after: of CameAMP"] == "–", "there is no such run"
    assert (wide["warm-up: of CameAMP"], wide["warm-up: of own 32-bit"]) == ("50.0 %", "25.0 %")
    assert wide["status"] == "error, ok"
    assert (full["printed"], small["printed"], wide["printed"]) == ("100 %", "~25 %", "~30 %")
    assert rows["adamw"]["after: of CameAMP"] == "50.0 %"
    assert "relative_memory: " in build(tmp_path, [STUDY]).read_text()


def test_relative_memory_takes_one_phase_a_class_name_and_variants(tmp_path: Path) -> None:
    target = {"optimizer_target": "optimeter.optimizers.Automagic_CameAMP"}
    small = {"arguments": {"storage": "8bit"}, **target}
    write(tmp_path, state_of("optimeter.optimizers.Automagic_CameAMP", 20.0, **target))
    write(tmp_path / "b", state_of("optimeter.optimizers.Automagic_CameAMP", 5.0, **small))
    rows = rows_of(relative_memory(read_records(tmp_path)))
    assert [row["warm-up: of CameAMP"] for row in rows] == ["25.0 %", "100.0 %"]
    assert rows[0]["optimizer"] == "automagic_cameamp (storage=8bit)"
    assert "after: B/parameter" not in rows[0]
    alone = write(tmp_path / "c", state_of("adamw", 8.0, warm_up=None))
    assert relative_memory(read_records(alone)) is None, "nothing of the family is there"


def test_the_weight_decay_curve_is_the_formulas(tmp_path: Path) -> None:
    target = {"optimizer_target": "optimeter.optimizers.CustomAdamW"}
    other = DECAY | {"wd_transition_steps": 800, "wd_decay_factor": 0.65, "wd_min_ratio": 0.12}
    write(tmp_path, record("custom_adamw", arguments=DECAY, **target), record("b", arguments=other, **target))
    write(tmp_path / "off", record("c", arguments=DECAY | {"dynamic_weight_decay": False}, **target))
    write(tmp_path / "no", record("d", arguments=DECAY, optimizer_target="torch.optim.AdamW"))
    table = weight_decay_curve(read_records(tmp_path))
    rows = {row["step"]: row for row in rows_of(table)}
    column = "T=1000, f=0.7, floor=0.1"
    shown = {step: (row[column], row["printed"]) for step, row in rows.items()}
    assert shown["1,000"] == ("100.0 %", "100 %")
    assert shown["1,500"] == ("83.7 %", "84 %")
    assert shown["2,000"] == ("70.0 %", "70 %")
    assert shown["3,000"] == ("49.0 %", "49 %")
    assert shown["5,000"] == ("24.0 %", "10 %")
    assert shown["7,456"] == ("10.0 %", "10 %")
    assert table
    assert list(table.columns) == ["step", "T=800, f=0.65, floor=0.12", column, "printed"]
    assert all(len(row[2].records) == 1 for row in table.rows)
    assert "against its own formula" in table.notes[1]
    assert weight_decay_curve(read_records(tmp_path / "no")) is None


@pytest.mark.parametrize("setting", [(1000, 0.7, 0.1), (800, 0.65, 0.12), (1200, 0.75, 0.15), (3, 0.5, 0.25)])
def test_the_floor_is_reached_where_it_is_said(setting: tuple[float, float, float]) -> None:
    start, factor, floor = setting
    end = floor_step(*setting)
    assert end is not None
    assert share(end, *setting) == floor
    assert share(end - 1, *setting) > floor
    assert share(start, *setting) == 1
    assert floor_step(start, 1.0, floor) is None
    assert floor_step(start, factor, 0.0) is None

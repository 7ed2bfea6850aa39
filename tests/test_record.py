"""Records: whole or not at all, never NaN, safe names, one owner at a time."""

import json
import math
import multiprocessing
import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimeter.measure.jobs.environment import describe
from optimeter.measure.records.document import PAGE, blocks_of, page
from optimeter.measure.records.environment import Environment
from optimeter.measure.records.fields import Malformed, from_plain, names, types_of
from optimeter.measure.records.folder import Place
from optimeter.measure.records.lines import Line
from optimeter.measure.records.naming import run_id, slug
from optimeter.measure.records.read import LARGEST_CONFIG, LARGEST_RESULT, Record, Unreadable, read_records
from optimeter.measure.records.schema import FINISHED, SCHEMA, STATUSES, Findings, Memory, Result, Status, Times
from optimeter.measure.records.write import check, to_json, to_line
from tests.conftest import PROJECT


def made(sweep: Path, run: str = "adam-toy-1", **keys: Any) -> Place:
    place = Place(sweep, run)
    place.begin("steps: 1\n")
    (place.part / "steps.jsonl").write_text('{"step": 1}\n')
    place.commit(Result(**{"status": "ok"} | keys))
    return place


def test_a_committed_run_is_read_back_and_kept(tmp_path: Path) -> None:
    place = made(tmp_path, steps=3, optimizer="adam", extra={"x": 1.5})
    (record,) = read_records(tmp_path)
    assert record.result == Result(status="ok", steps=3, optimizer="adam", extra={"x": 1.5})
    assert record.steps() == [{"step": 1}]
    assert place.finished() == record.result
    assert sorted(path.name for path in place.folder.iterdir()) == ["config.yaml", "result.json", "steps.jsonl"]


@pytest.mark.parametrize("status", STATUSES)
def test_only_finished_runs_are_kept(tmp_path: Path, status: Status) -> None:
    assert (made(tmp_path, status=status).finished() is not None) == (status in FINISHED)


def steps_of(place: Place) -> int:
    result = place.finished()
    assert result
    return result.steps


def test_a_run_made_again_replaces_the_old_one_whole(tmp_path: Path) -> None:
    place = made(tmp_path, steps=1)
    (place.folder / "left over").touch()
    made(tmp_path, steps=2)
    assert steps_of(place) == 2
    assert not (place.folder / "left over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["adam-toy-1"]


def test_a_run_under_way_or_killed_is_interrupted_and_torn_lines_are_left_out(tmp_path: Path) -> None:
    place = Place(tmp_path, "adam-toy-2")
    place.begin("steps: 1\n")
    (place.part / "steps.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    (record,) = read_records(tmp_path)
    assert record.result.status == "interrupted"
    assert record.steps() == [{"step": 1}, {"step": 2}]
    assert place.finished() is None


@pytest.mark.parametrize("left", [(".part",), (".old",), (".old", ".part")], ids=str)
def test_a_commit_killed_between_its_renames_is_finished_by_the_next_start(
    tmp_path: Path, left: tuple[str, ...]
) -> None:
    for suffix in left:
        made(tmp_path, steps=1 if suffix == ".old" else 2).folder.rename(tmp_path / f"adam-toy-1{suffix}")
    place = Place(tmp_path, "adam-toy-1")
    assert len(read_records(tmp_path)) == (".part" in left), "an .old folder is no record beside its successor"
    with place.lock(wait=False):
        assert steps_of(place) == (2 if ".part" in left else 1)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".locks") == ["adam-toy-1"]


def test_a_failed_write_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = made(tmp_path, steps=1)
    place.begin("steps: 1\n")
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        place.commit(Result(status="ok", steps=2))
    assert steps_of(place) == 1


PLAIN = json.loads(to_json(Result(status="ok", optimizer="adam", workload="toy")))


def with_text(text: str | bytes, name: str = "result.json") -> Any:
    def put(folder: Path) -> None:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return put


def with_keys(**keys: Any) -> Any:
    return with_text(json.dumps(PLAIN | keys))


def large(name: str, size: int) -> Any:
    def put(folder: Path) -> None:
        with open(folder / name, "wb") as file:
            file.truncate(size)  # it takes no room on the disk

    return put


def linked(name: str, target: str) -> Any:
    return lambda folder: (folder / name).symlink_to(target)


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
# What stands in a folder that is no run's → how it is put there, and what is said of it.
FOREIGN: dict[str, tuple[Any, str]] = {
    "empty": (with_text(""), "is empty"),
    "truncated": (with_text(json.dumps(PLAIN)[:-9]), "is not JSON"),
    "no text": (with_text(b"\xff\xfe{}"), "is not UTF-8"),
    "a list": (with_text("[]"), "is a list, not an object"),
    "a number": (with_text("3"), "is 3, not an object"),
    "another's": (with_text('{"status": "ok"}'), "schema is null: this is no record of Optimeter"),
    "newer": (with_keys(schema=SCHEMA + 1), f"schema is {SCHEMA + 1}: a newer version made it"),
    "no schema": (with_keys(schema=True), "schema is True"),
    "no status": (with_keys(status="fine"), "status is 'fine', not one of ok"),
    "a wrong block": (with_keys(memory=3), "memory is 3, not an object"),
    "a wrong number": (with_keys(memory={"state_bytes": "many"}), "memory.state_bytes is 'many', not a whole number"),
    "a wrong list": (with_keys(quality={"evaluations": [{"step": None}]}), "step is null, not a whole number"),
    "a wrong configuration": (with_keys(config={"optimizer": 3}), "config.optimizer is 3"),
    "a class of another kind": (
        with_keys(config={"optimizer": {"a": 1}, "workload": {"_target_": [1]}}), "workload._target_ is a list"
    ),
    "half a configuration": (with_keys(config={"steps": 3}), "config.optimizer is missing"),
    "NaN": (with_text(json.dumps(PLAIN | {"time": {"wall": math.nan}})), "time.wall is nan, not a finite number"),
    "infinite": (with_text(json.dumps(PLAIN).replace('"config": {}', '"config": {"a": 1e999}')), "config.a is inf"),
    "a huge number": (with_keys(steps=10**400), "steps is a number of more than 64 bits"),
    "more digits than Python reads": (with_text('{"steps": ' + "9" * 5000 + "}"), "is not JSON"),
    "deep": (with_text('{"config": ' + "[" * 100_000 + "]" * 100_000 + "}"), "is nested too deep"),
    "rather deep": (with_keys(extra={"a": json.loads("[" * 99 + "]" * 99)}), "extra.a is nested deeper"),
    "half a character": (with_keys(optimizer="\ud800"), "has half a character"),
    "300 MB": (large("result.json", 300_000_000), f"no record has more than {LARGEST_RESULT:,}"),
    "a pipe": (lambda folder: os.mkfifo(folder / "result.json"), "is a named pipe, not a file"),
    "a folder": (lambda folder: (folder / "result.json").mkdir(), "is a folder, not a file"),
    "a link to nothing": (linked("result.json", "nowhere"), "is a link to nothing"),
    "a link to itself": (linked("result.json", "result.json"), "Too many levels of symbolic links"),
    "YAML tags": (with_text("a: !!python/object/apply:os.system [exit]", "config.yaml"), "has the YAML tag"),
    "YAML aliases": (with_text(BOMB, "config.yaml"), "has YAML anchors or aliases"),
    "deep YAML": (with_text("[" * 100_000, "config.yaml"), "nested deeper than"),
    "no YAML": (with_text("a: [", "config.yaml"), "is not YAML"),
    "no mapping": (with_text("- a", "config.yaml"), "is a list, not a mapping"),
    "no configuration": (with_text("seed: many", "config.yaml"), "config.seed is 'many'"),
    "a date": (with_text("started: 2026-11-20", "config.yaml"), "which JSON does not have"),
    "large YAML": (large("config.yaml", LARGEST_CONFIG + 1), f"no record has more than {LARGEST_CONFIG:,}"),
    "a pipe of YAML": (lambda folder: os.mkfifo(folder / "config.yaml"), "is a named pipe, not a file"),
    "a folder of YAML": (lambda folder: (folder / "config.yaml").mkdir(), "is a folder, not a file"),
    "a link to no YAML": (linked("config.yaml", "nowhere"), "is a link to nothing"),
}  # fmt: skip
if Path("/proc/self/mem").exists():  # as a disk that fails
    FOREIGN["what cannot be read"] = (linked("result.json", "/proc/self/mem"), "Input/output error")


def test_what_is_no_record_is_a_line_and_the_rest_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path)
    for name, (put, _) in FOREIGN.items():
        (tmp_path / name).mkdir()
        put(tmp_path / name)
    assert [record.name for record in read_records(tmp_path)] == ["adam-toy-1"]
    lines = {Path(line.partition(": ")[0]).parent.name: line for line in capsys.readouterr().err.splitlines()}
    assert lines.keys() == FOREIGN.keys()
    for name, (_, said) in FOREIGN.items():
        assert said in lines[name], name


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_what_must_not_be_read_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made(tmp_path).folder / "result.json").chmod(0)
    assert read_records(tmp_path) == []
    assert "Permission denied" in capsys.readouterr().err


def contents(folder: Path) -> list[tuple[str, int, int, int]]:
    """What is in a folder: name, kind, size and time of the last change of each entry."""
    entries = [(path.name, path.lstat()) for path in folder.iterdir()]
    return [(name, status.st_mode, status.st_size, status.st_mtime_ns) for name, status in entries]


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_record_is_never_overwritten(tmp_path: Path, name: str) -> None:
    place = Place(tmp_path, "adam-toy-1")
    place.folder.mkdir()
    FOREIGN[name][0](place.folder)
    before = contents(place.folder)
    assert place.finished() is None
    with place.lock(wait=False), pytest.raises(Unreadable, match="adam-toy-1"):
        place.begin("steps: 1\n")
    assert contents(place.folder) == before


def test_a_line_stays_one_whatever_a_folder_is_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a\nb\x1b[31m").mkdir()
    with_text("[]")(tmp_path / "a\nb\x1b[31m")
    assert read_records(tmp_path) == []
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_that_no_page_can_name_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path).folder.rename(tmp_path / os.fsdecode(b"odd-\xff"))
    assert read_records(tmp_path) == []
    assert "its name is not UTF-8" in capsys.readouterr().err


OLD = {
    "schema": 1, "status": "ok", "reason": None, "measure": "step", "optimizer": "lion", "workload": "mlp",
    "optimizer_target": "optimizers.Lion", "memory": None, "quality": {"first_loss": 2},
    "config": {
        "optimizer": {"_target_": "optimizers.Lion", "lr": 1e-4, "about": {"reference": "a paper", "closure": False}},
        "baseline": "torch_adamw",
        "workload": {"_target_": "workloads.shapes.Shapes", "shapes": [[1, [8, 8]]]},
        "measure": {"kind": "step", "shapes": "8x8", "baseline": {"_target_": "torch.optim.AdamW", "lr": 1e-3}},
        "choices": {"optimizer": "lion", "workload": "mlp"},
    },
}  # fmt: skip


def test_schema_1_is_read_as_what_it_would_be_now(tmp_path: Path) -> None:
    folder = tmp_path / "lion-mlp-1"
    folder.mkdir()
    with_text(json.dumps(OLD))(folder)
    (record,) = read_records(tmp_path)
    result = record.result
    assert (result.schema, result.optimizer_target) == (SCHEMA, "optimeter.optimizers.Lion")
    assert result.quality.first_loss == 2
    assert result.memory.state_bytes is None
    assert result.config == {
        "optimizer": {"_target_": "optimeter.optimizers.Lion", "lr": 1e-4, "about": {"closure": False}},
        "baseline": "torch_adamw",
        "workload": {"_target_": "optimeter.workloads.shapes.Shapes", "shapes": [[1, [8, 8]]]},
        "measure": {
            "_target_": "optimeter.measure.methods.Step",
            "shapes": "8x8",
            "optimizers": {"baseline": {"_target_": "torch.optim.AdamW", "lr": 1e-3}},
        },
        "choices": {"optimizer": "lion", "workload": "mlp", "measure": "step", "baseline": "torch_adamw"},
    }


def test_an_unfinished_run_of_schema_1_is_read_too(tmp_path: Path) -> None:
    folder = tmp_path / "lion-mlp-1.part"
    folder.mkdir()
    with_text(json.dumps(OLD["config"]), "config.yaml")(folder)
    (record,) = read_records(tmp_path)
    assert (record.result.status, record.result.measure) == ("interrupted", "step")
    assert record.result.config["optimizer"]["_target_"] == "optimeter.optimizers.Lion"


@pytest.mark.parametrize(
    ("findings", "problem"),
    [
        (Findings(status="ok", extra={"a": object()}), "extra.a is <object"),
        (Findings(status="ok", memory=Memory(state_bytes="many")), "memory.state_bytes is 'many'"),  # type: ignore[arg-type]
        (Findings(status="fine"), "status is 'fine'"),  # type: ignore[arg-type]
        (Findings(status="ok", time=3), "time is 3, not an object"),  # type: ignore[arg-type]
    ],
    ids=["extra", "memory", "status", "time"],
)
def test_what_a_measure_finds_is_checked(findings: Findings, problem: str) -> None:
    check(Findings(status="ok", extra={"a": [np.float64(1.5), math.nan]}))
    with pytest.raises(Malformed, match=problem):
        check(findings)


def test_the_page_of_the_record_is_made_from_its_definition() -> None:
    assert PAGE.read_text() == page(), "python -m optimeter.measure.records.document"


def blocks() -> set[Any]:
    return {*blocks_of(Result, "result.json"), *blocks_of(Line, "steps.jsonl")}


@pytest.mark.parametrize("block", sorted(blocks(), key=lambda block: block.__name__), ids=lambda block: block.__name__)
def test_every_key_has_a_meaning_and_every_quantity_a_unit(block: Any) -> None:
    for key in fields(block):
        assert key.metadata["meaning"].endswith((".", "…")), key.name
        if key.name.endswith(("_bytes", "_seconds", "_share")) or key.name in ("bytes", "seconds"):
            assert key.metadata["unit"], key.name


def lost(kind: type, plain: dict[str, Any]) -> set[str]:
    """Keys of a dict, and of the dicts in it, that the record's definition does not have."""
    missing = plain.keys() - set(names(kind))
    for name in set(names(kind)) & plain.keys():
        inner = types_of(kind)[name]
        if isinstance(inner, type) and is_dataclass(inner):
            missing |= {f"{name}.{key}" for key in lost(inner, plain[name] or {})}
    return missing


def test_nothing_that_is_said_of_a_machine_is_lost() -> None:
    assert not lost(Environment, describe(None))


def test_nothing_of_a_published_record_is_lost() -> None:
    for path in (PROJECT / "results").glob("*/*/result.json"):
        assert not lost(Result, json.loads(path.read_text())), path


def test_lines_of_steps_have_the_keys_that_are_described() -> None:
    for path in sorted((PROJECT / "results").glob("*/*-embedding-*/steps.jsonl"))[::20]:
        for line in Record(path.parent, Result(status="ok")).steps():
            assert line.keys() <= set(names(Line))
            from_plain(Line, line)


def test_what_is_not_finite_is_null_with_its_reason() -> None:
    times, extra = Times(wall=math.nan, first_step=1.0), {"c": [1.0, math.inf]}
    result = json.loads(to_json(Result(status="ok", time=times, extra=extra, missing={"d": "why"})))
    assert result["time"]["wall"] is None
    assert result["extra"] == {"c": [1.0, None]}
    assert result["missing"] == {"d": "why", "time.wall": "not finite: nan", "extra.c[1]": "not finite: inf"}
    assert json.loads(to_line({"loss": math.nan, "lr": 0.1})) == {"loss": None, "lr": 0.1, "not_finite": ["loss"]}
    assert json.loads(to_line({"loss": 2.0})) == {"loss": 2.0}


def test_the_id_depends_on_content_not_on_order() -> None:
    assert run_id({"a": 1, "b": [2]}) == run_id({"b": [2], "a": 1}) != run_id({"a": 1, "b": [3]})
    assert len(run_id({})) == 12


@given(st.text(min_size=1, max_size=80))
def test_a_slug_is_a_plain_folder_name(name: str) -> None:
    folder = slug(name)
    assert 0 < len(folder) <= 60
    assert all(character.isascii() and (character.isalnum() or character in "._-") for character in folder)
    assert not folder.startswith((".", "-"))
    assert slug(folder) == folder


def test_different_names_never_share_a_folder() -> None:
    names = ["a|b", "a-b", "a b", "<script>", "script", "优化器", "x" * 61, "x" * 62, "hf/adamw_torch", "..", "a"]
    assert len({slug(name) for name in names}) == len(names)


def _hold(sweep: Path, ready: Any, release: Any) -> None:
    with Place(sweep, "adam-toy-3").lock(wait=True):
        ready.set()
        release.wait(30)


def test_a_run_has_one_owner_and_the_lock_dies_with_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    owner = context.Process(target=_hold, args=(tmp_path, ready, release))
    owner.start()
    assert ready.wait(30)
    with Place(tmp_path, "adam-toy-3").lock(wait=False) as mine:
        assert not mine
    with Place(tmp_path, "adam-toy-4").lock(wait=False) as mine:
        assert mine
    owner.kill()
    owner.join()
    with Place(tmp_path, "adam-toy-3").lock(wait=True) as mine:
        assert mine

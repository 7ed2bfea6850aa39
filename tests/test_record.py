"""Records: whole or not at all, never NaN, safe names, one owner at a time."""

import json
import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimeter.measure.records.record import FINISHED, STATUSES, Place, read_records, run_id, slug, to_json, to_line


def made(sweep: Path, run: str = "adam-toy-1", **result: Any) -> Place:
    place = Place(sweep, run)
    place.begin("steps: 1\n")
    (place.part / "steps.jsonl").write_text('{"step": 1}\n')
    place.commit({"status": "ok", "reason": None} | result)
    return place


def test_a_committed_run_is_read_back_and_kept(tmp_path: Path) -> None:
    place = made(tmp_path, x=1.5)
    (record,) = read_records(tmp_path)
    assert record.result.items() >= {"status": "ok", "reason": None, "x": 1.5, "missing": {}}.items()
    assert record.steps() == [{"step": 1}]
    assert place.finished() == record.result
    assert sorted(path.name for path in place.folder.iterdir()) == ["config.yaml", "result.json", "steps.jsonl"]


@pytest.mark.parametrize("status", STATUSES)
def test_only_finished_runs_are_kept(tmp_path: Path, status: str) -> None:
    assert (made(tmp_path, status=status).finished() is not None) == (status in FINISHED)


def test_a_run_made_again_replaces_the_old_one_whole(tmp_path: Path) -> None:
    place = made(tmp_path, x=1)
    (place.folder / "left over").touch()
    made(tmp_path, x=2)
    assert place.finished()["x"] == 2  # type: ignore[index]
    assert not (place.folder / "left over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["adam-toy-1"]


def test_a_run_under_way_or_killed_is_interrupted_and_torn_lines_are_left_out(tmp_path: Path) -> None:
    place = Place(tmp_path, "adam-toy-2")
    place.begin("steps: 1\n")
    (place.part / "steps.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    (record,) = read_records(tmp_path)
    assert record.result["status"] == "interrupted"
    assert record.steps() == [{"step": 1}, {"step": 2}]
    assert place.finished() is None


@pytest.mark.parametrize("left", [(".part",), (".old",), (".old", ".part")], ids=str)
def test_a_commit_killed_between_its_renames_is_finished_by_the_next_start(
    tmp_path: Path, left: tuple[str, ...]
) -> None:
    for suffix in left:
        made(tmp_path, x=1 if suffix == ".old" else 2).folder.rename(tmp_path / f"adam-toy-1{suffix}")
    place = Place(tmp_path, "adam-toy-1")
    assert len(read_records(tmp_path)) == (".part" in left), "an .old folder is no record beside its successor"
    with place.lock(wait=False):
        assert place.finished()["x"] == (2 if ".part" in left else 1)  # type: ignore[index]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".locks") == ["adam-toy-1"]


def test_a_failed_write_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = made(tmp_path, x=1)
    place.begin("steps: 1\n")
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        place.commit({"status": "ok", "reason": None, "x": 2})
    assert place.finished()["x"] == 1  # type: ignore[index]


def test_what_is_not_finite_is_null_with_its_reason() -> None:
    result = json.loads(to_json({"a": math.nan, "b": {"c": [1.0, math.inf]}, "missing": {"d": "why"}}))
    assert result == {
        "a": None,
        "b": {"c": [1.0, None]},
        "missing": {"d": "why", "a": "not finite: nan", "b.c[1]": "not finite: inf"},
    }
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

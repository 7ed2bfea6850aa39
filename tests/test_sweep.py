"""What a sweep says of its runs: labels that can be told apart, and one line on what each found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimeter import bench
from optimeter.measure.jobs.child import summarise
from optimeter.measure.jobs.dry_run import same
from optimeter.measure.jobs.job import Job, essence
from optimeter.measure.jobs.news import checked_line, checked_progress
from optimeter.measure.jobs.progress import Progress
from optimeter.measure.jobs.sweep import told_apart
from optimeter.measure.methods.base import Measure
from optimeter.measure.records.folder import Place
from optimeter.measure.records.schema import Findings
from optimeter.reports.__main__ import search_path
from tests.running import PROJECT


def job(label: str, **config: Any) -> Job:
    return Job(label, Place(Path("runs"), label), {}, {"config": config})


def labels(*jobs: Job) -> list[str]:
    return [one.label for one in told_apart(list(jobs))]


def test_labels_that_are_alike_say_what_differs() -> None:
    same = {"seed": 0, "workload": {"size": "tiny"}}
    made = [job("a on mlp", **same, optimizer={"lr": lr, "eps": 1.0}) for lr in (0.1, 0.2)]
    assert labels(*made, job("b on mlp", **same)) == ["a on mlp, lr 0.1", "a on mlp, lr 0.2", "b on mlp"]


def test_what_is_said_twice_is_said_once_and_what_one_run_lacks_is_not_said() -> None:
    made = [job("a", steps=steps, workload={"steps": steps}) for steps in (2, 3)]
    assert labels(*made) == ["a, steps 2", "a, steps 3"]
    assert labels(job("a", measure={"kind": "train", "every": 5}), job("a", measure={"kind": "step"})) == [
        "a, kind train",
        "a, kind step",
    ]


@pytest.mark.parametrize("news", ["hello", None, (1, 2), (0, 0, "low"), (1.5, 2, None), {"step": 1, "of": 2, "x": 3}])
def test_a_measure_that_tells_of_progress_in_another_form_is_stopped(news: Any) -> None:
    with pytest.raises(TypeError):
        checked_progress(news)


def test_progress_is_told_in_plain_numbers() -> None:
    assert checked_progress([np.int64(1), 2, np.float32(0.5)]) == (1, 2, 0.5)
    assert [type(x) for x in checked_progress((np.int64(1), 2, 3))] == [int, int, float]


def test_a_run_of_no_steps_has_progress_too() -> None:
    class Bar:
        def update(self, task: Any, completed: float, news: str) -> None:
            assert completed == 0

    progress = Progress(1)
    progress._bar, progress._task = Bar(), 0  # type: ignore[assignment]
    progress.news((0, 0, None))


@pytest.mark.parametrize("line", ["text", {"loss": 1.0}, {"step": "one"}, [1]])
def test_a_line_of_steps_has_its_step(line: Any) -> None:
    with pytest.raises(TypeError, match="whole number as its `step`"):
        checked_line(line)
    assert checked_line({"step": 1, "loss": 2.0}) == {"step": 1, "loss": 2.0}


class Says(Measure):
    """A measure whose line is given, or raised."""

    def __init__(self, said: Any) -> None:
        self.said = said

    def line(self, findings: Findings) -> str:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("said", "summary", "missing"),
    [
        ("one\ntwo", "one", None),
        ("", None, None),
        (None, None, None),
        (KeyError("extra"), None, "KeyError: 'extra'"),
        (3, None, "AttributeError: 'int' object has no attribute 'splitlines'"),
    ],
    ids=str,
)
def test_the_line_that_ends_a_run_is_one_or_is_missing(said: Any, summary: str | None, missing: str | None) -> None:
    findings = Findings(status="ok", steps=3)
    summarise(findings, Says(said))
    assert (findings.summary, findings.missing.get("summary"), findings.steps) == (summary, missing, 3)


def test_an_estimate_is_shared_between_seeds_alone() -> None:
    first, second, clipped = (
        job("a", seed=seed, clip_norm=clip, name=name)
        for seed, clip, name in ((0, None, "x"), (1, None, "y"), (0, 1, "x"))
    )
    assert same(first) == same(second) != same(clipped)


def test_roles_belong_to_what_a_run_is() -> None:
    assert essence({"lr": 1, "about": {"roles": {"a": "b"}, "package": "c"}}) == ({"lr": 1}, {"roles": {"a": "b"}})


@pytest.mark.parametrize("path", [[], [str(PROJECT)], [""]], ids=str)
def test_a_checkout_stands_behind_a_users_folders(path: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    folders = bench.search_path([*path, "/installed"], ["--config-dir", "/theirs/conf"])
    assert folders[:3] == ["/installed", "/theirs/conf", "/theirs"]
    assert {str(Path(folder).resolve()) for folder in folders[3:]} == {str(PROJECT)}
    reports = search_path([*path, "/installed"], [str(PROJECT), "/theirs/conf"])
    assert reports[:2] == ["/installed", "/theirs/conf"]

"""What a sweep says of its runs: labels that can be told apart, and one line on what each found."""

from pathlib import Path
from typing import Any

from optimeter.measure.jobs.job import Job
from optimeter.measure.jobs.sweep import told_apart
from optimeter.measure.records.folder import Place


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

"""What a sweep says of its runs: labels that can be told apart, and one line on what each found."""

from pathlib import Path
from typing import Any

import pytest

from optimeter.measure.jobs.job import Job
from optimeter.measure.jobs.sweep import BYTES, SECONDS, in_a_line, scaled, told_apart
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


@pytest.mark.parametrize(
    ("value", "units", "words"),
    [
        (36, BYTES, "36 B"),
        (36_165_768, BYTES, "36.17 MB"),
        (12.3456e9, BYTES, "12.35 GB"),
        (0, BYTES, "0 B"),
        (1.25, SECONDS, "1.25 s"),
        (0.0461, SECONDS, "46.1 ms"),
        (2.5e-7, SECONDS, "0.25 µs"),
    ],
)
def test_numbers_have_a_unit_of_their_size(value: float, units: dict[str, float], words: str) -> None:
    assert scaled(value, units) == words


def test_the_line_of_a_trained_run() -> None:
    peaks = {"forward": 5e6, "backward": 9e6, "step": 4e6, "overall": 9e6}
    result: dict[str, Any] = {
        "status": "ok",
        "quality": {"first_loss": 6.5536, "final_loss": 2.5646},
        "memory": {"state_bytes": 2000, "transient_bytes": 500, "peak_bytes": peaks},
        "time": {"step": {"median": 0.0328}},
    }
    assert in_a_line(result) == "loss 6.554 → 2.565, 32.8 ms a step, peak 9 MB in backward, 2.5 kB the optimizer's"
    unwatched = result | {"memory": {"state_bytes": 2000, "transient_bytes": None, "peak_bytes": None}}
    assert in_a_line(unwatched | {"time": {"step": None}}) == "loss 6.554 → 2.565"
    assert in_a_line(result | {"status": "diverged"}) == ""
    assert in_a_line({"status": "error", "quality": None}) == ""

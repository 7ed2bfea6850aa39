"""Jobs that are composed fast are those that Hydra composes, and a thousand take seconds."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import setup_globals
from omegaconf import open_dict

from optimeter.conf import CONF
from optimeter.conf.composer import Composer, plain
from optimeter.measure.jobs.progress import counted
from tests.conftest import names


@pytest.fixture
def composer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Composer]:
    monkeypatch.setenv("OPTIMETER_SWEEP", "/nowhere")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        setup_globals()
        master = hydra_compose("bench", [], return_hydra_config=True)
        yield Composer(GlobalHydra.instance().config_loader(), master)  # type: ignore[arg-type]


def by_hydra(composer: Composer, overrides: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    config = composer.loader.load_sweep_config(composer.master, list(overrides))
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return plain(config), choices


FILES = [f"{group}={name}" for group in ("optimizer", "workload", "measure") for name in names(group)]
FILES += [f"optimizer=hf/{name}" for name in names("optimizer/hf")]
FILES += [f"experiment={name}" for name in names("experiment")]
JOBS: list[list[str]] = [
    [],
    ["seed=3"],
    ["optimizer.lr=0.1", "optimizer=lion", "seed=7"],
    ["+optimizer.more=[1,2]", "~optimizer.eps", "optimizer.betas=[0.5,0.9]"],
    ["measure=step", "measure.shapes=8*1024x1024", "baseline=adam"],
    ["workload=layer", "workload.shape=[4,8]", "clip_norm=1e-3", "name='a b'"],
    ["optimizer={lr: 2}", "steps=null", "dtype=bfloat16"],
    ["+extra.deep.key=${seed}", "seed=11"],
    ["++optimizer.about.roles={a: b}"],
]


@pytest.mark.parametrize("files", [FILES[::6], pytest.param(FILES, marks=pytest.mark.thorough)], ids=["some", "all"])
def test_every_job_is_the_one_that_hydra_composes(composer: Composer, files: list[str]) -> None:
    jobs = [*([file] for file in files), *JOBS]
    theirs = [by_hydra(composer, overrides) for overrides in jobs]
    for overrides, (config, choices) in zip(jobs * 2, theirs * 2, strict=True):
        made = composer.compose(overrides)  # twice: what one job's values do to shared files would show in the next
        assert made.config == config, overrides
        assert list(made.config) == list(config)
        assert {name: choices[name] for name in made.choices} == dict(made.choices)
        assert set(choices) == set(made.choices)


def test_what_asks_hydra_about_its_job_is_left_to_hydra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIMETER_SWEEP", "/nowhere")
    (tmp_path / "workload").mkdir()
    (tmp_path / "workload" / "asks.yaml").write_text("_target_: x.Y\nwhere: ${hydra:runtime.choices.optimizer}\n")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        setup_globals()
        searched = [f"hydra.searchpath=[file://{tmp_path}]"]
        master = hydra_compose("bench", searched, return_hydra_config=True)
        composer = Composer(GlobalHydra.instance().config_loader(), master)  # type: ignore[arg-type]
        made = composer.compose(["workload=asks", "optimizer=adam"])
    assert made.config["workload"] == {"_target_": "x.Y", "where": "adam"}


def test_a_thousand_jobs_take_seconds(composer: Composer) -> None:
    composer.compose(["optimizer=adam", "seed=1000"])
    begin = time.process_time()
    for seed in range(1000):
        assert composer.compose(["optimizer=adam", f"seed={seed}"]).config["seed"] == seed
    assert time.process_time() - begin < 10, "0.07 s each, as Hydra takes, would be a minute"


def test_composing_that_takes_long_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(time, "monotonic", iter(range(100)).__next__)  # a second a job
    assert list(counted("abcdefghij", "jobs are composed")) == list("abcdefghij")
    said = capsys.readouterr().err.splitlines()
    assert said == ["bench.py: 1 of 10 jobs are composed", "bench.py: 6 of 10 jobs are composed"]


WRONG = [["optimizer=adamm"], ["optimizer.lrr=1"], ["+seed=1"], ["~nothing"], ["optimizer/lr=1"], ["seed=1,2"]]


@pytest.mark.parametrize("overrides", WRONG, ids=str)
def test_what_cannot_be_composed_is_refused_in_hydras_words(composer: Composer, overrides: list[str]) -> None:
    with pytest.raises(Exception) as theirs:
        by_hydra(composer, overrides)
    with pytest.raises(type(theirs.value)) as ours:
        composer.compose(overrides)
    assert str(ours.value) == str(theirs.value)

"""The ways to measure as parts: what each takes, when it fits, the line that ends its run, the loop that they share."""

import inspect
import textwrap
from itertools import islice
from typing import Any

import pytest
import torch

from optimeter.measure.methods import Loop, Measure, Overhead, Plan, Recipe, Settings, Step, Train, Trial
from optimeter.measure.records import schema
from optimeter.measure.records.schema import Findings, Memory, Quality, Spread, Times
from optimeter.measure.records.units import BYTES, SECONDS, scaled
from optimeter.workloads import MLP, Embedding, Toy, Workload
from tests.trials import trial


def adamw(named: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for _, p in named], lr=1e-3)


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
    peaks = {"forward": 5_000_000, "backward": 9_000_000, "step": 4_000_000, "overall": 9_000_000}
    findings = Findings(
        status="ok",
        quality=Quality(first_loss=6.5536, final_loss=2.5646),
        memory=Memory(state_bytes=2000, transient_bytes=500, peak_bytes=peaks),
        time=Times(step=Spread(median=0.0328, p10=0.03, p90=0.04, n=10)),
    )
    line = Train().line
    assert line(findings) == "loss 6.554 → 2.565, 32.8 ms a step, peak 9 MB in backward, 2.5 kB the optimizer's"
    findings.memory, findings.time = Memory(state_bytes=2000), Times()
    assert line(findings) == "loss 6.554 → 2.565"
    findings.status = "diverged"
    assert line(findings) == ""
    assert line(Findings(status="error")) == ""


def test_the_line_of_a_comparison_of_steps() -> None:
    sides = {name: schema.StepSide(optimizer=optimizer) for name, optimizer in
             (("candidate", "adamw8bit"), ("baseline", "bnb_adamw8bit"))}  # fmt: skip
    step = schema.StepComparison(verdict="FAST", ratio=0.4649, low=0.38, high=0.471, shapes="8*1024x1024", **sides)
    findings = Findings(status="ok", step=step)
    assert Step().line(findings) == "adamw8bit against bnb_adamw8bit on 8*1024x1024: FAST 0.46 [0.38, 0.47]"
    step.shapes = "+".join(f"{n}x{n}" for n in range(100, 200))
    assert "on 100x100+101x101+" in Step().line(findings)
    assert "+…: FAST" in Step().line(findings)
    assert len(Step().line(findings)) < 130
    assert Step().line(Findings(status="error")) == ""


def test_the_lines_of_a_plan_and_of_the_monitors_cost() -> None:
    plan = schema.Plan(parameter_bytes=45_200_000_000, gradient_bytes=45_200_000_000, state_bytes=90_400_000_000,
                       transient_bytes=100_000_000, total_bytes=180_900_000_000,
                       fits={"141": False, "192": True})  # fmt: skip
    line = "180.9 GB: 45.2 parameters, 45.2 gradients, 90.4 state, 0.1 step; fits 192 GB"
    assert Plan().line(Findings(status="ok", plan=plan)) == line
    verdict = "not resolved: off/off is not 0"
    assert Overhead().line(Findings(status="ok", overhead=schema.Overhead(verdict=verdict))) == verdict
    assert [measure.line(Findings(status="error")) for measure in (Plan(), Overhead(), Measure())] == ["", "", ""]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Step(delta=2), "measure.delta must be a number above 0 and below 1, not 2"),
        (lambda: Step(seconds=0), "measure.seconds must be a number above 0, not 0"),
        (lambda: Step(precision="narrow"), "measure.precision must be a number above 0, not 'narrow'"),
        (lambda: Step(block_seconds=True), "measure.block_seconds must be a number above 0, not True"),
        (lambda: Overhead(pairs=3), "measure.pairs must be a whole number of at least 4, not 3"),
        (lambda: Train(sample_every=0), "measure.sample_every must be auto or a whole number of at least 1, not 0"),
        (lambda: Overhead(sample_every="often"), "auto or a whole number of at least 1, not 'often'"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_in_one_line(make: Any, words: str) -> None:
    with pytest.raises(ValueError) as refusal:
        make()
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


class Needs(torch.optim.SGD):
    curvature_from = "sampled_loss"

    def update_hessian(self, loss: torch.Tensor, samples: int) -> None: ...


FITS: list[tuple[Measure, Workload, dict[str, Any], str | None]] = [
    (Train(), MLP(steps=1), {}, None),
    (Train(), MLP(steps=1), {"gradients": "sparse"}, "it takes sparse gradients"),
    (Plan(), MLP(steps=1), {"gradients": "sparse"}, "it takes sparse gradients"),
    (Train(), MLP(steps=1), {"hessian_every": 5}, "has no update_hessian"),
    (Train(), MLP(steps=1), {"hessian_every": 5, "cls": Needs}, None),
    (Overhead(), Toy(steps=1), {"hessian_every": 5, "cls": Needs}, "has no sampled_loss"),
    (Plan(), Toy(steps=1), {"hessian_every": 5, "cls": Needs}, None),
    (Train(), Embedding(steps=1, sparse=True), {"gradients": "both", "clip_norm": 1.0}, "clip_norm needs dense"),
    (Plan(), Embedding(steps=1, sparse=True), {"gradients": "both", "clip_norm": 1.0}, None),
]


@pytest.mark.parametrize(("measure", "workload", "said", "reason"), FITS)
def test_a_measure_says_what_it_cannot_measure(
    measure: Measure, workload: Workload, said: dict[str, Any], reason: str | None
) -> None:
    refused = measure.fits(trial(workload, adamw, **said))
    assert refused is None if reason is None else reason in str(refused)


def test_a_baseline_must_fit_too() -> None:
    others = {"baseline": Recipe("other", adamw, gradients="sparse")}
    reason = Step().fits(trial(MLP(steps=1), adamw, others=others))
    assert reason == "baseline=other: it takes sparse gradients and this workload's are dense; choose another baseline"


def baseline() -> dict[str, Recipe]:
    return {"baseline": Recipe("base", adamw)}


@pytest.mark.parametrize(
    ("measure", "loops"),
    [
        (Train(), 1),
        (Overhead(pairs=4, block_seconds=0.001), 1),
        (Step(seconds=0.01, block_seconds=0.0005), 2),
        (Plan(), 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_model_and_optimizer_are_built_in_a_loop_alone(
    measure: Measure, loops: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    inside = [False]
    begin = Loop.__init__

    def watched(self: Loop, *args: Any, **kwargs: Any) -> None:
        inside[0] = True
        begin(self, *args, **kwargs)
        inside[0] = False
        built.append("loop")

    class Counted(MLP):
        def model(self) -> torch.nn.Module:
            if not self.planning:
                assert inside[0], "a model is built outside of a loop"
            return super().model()

        planning = isinstance(measure, Plan)

    def build(named: Any) -> torch.optim.Optimizer:
        fake = not isinstance(named[0][1].data, torch.Tensor) or "Fake" in type(named[0][1].data).__name__
        assert inside[0] or fake, "an optimizer is built outside of a loop"
        return adamw(named)

    monkeypatch.setattr(Loop, "__init__", watched)
    monkeypatch.setattr("optimeter.measure.methods.step.copy_rates", lambda device: [1e9])
    findings = measure.run(trial(Counted(steps=3), build, others={"baseline": Recipe("base", build)}))
    assert findings.status == "ok"
    assert built == ["loop"] * loops
    assert measure.line(findings)


class LossRange(Measure):
    """As in the docstring of base.py."""

    def __init__(self, batches: int = 16) -> None:
        if batches < 2:
            raise ValueError(f"measure.batches must be a whole number of at least 2, not {batches}")
        self.batches = batches

    def run(self, trial: Trial) -> Findings:
        loop = Loop(trial.workload, trial.optimizer, trial.settings, trial.device)
        batches = islice(trial.workload.batches("train", trial.settings.seed), self.batches)
        losses = [float(loop.gradients([loop.placed(batch)])) for batch in batches]
        return Findings(status="ok", steps=0, extra={"lowest": min(losses), "highest": max(losses)})

    def line(self, findings: Findings) -> str:
        return f"losses from {findings.extra['lowest']:.4g} to {findings.extra['highest']:.4g}"


def test_a_strangers_measure_is_as_short_as_the_docstring_says() -> None:
    from optimeter.measure.methods import base

    shown = textwrap.dedent(str(base.__doc__).partition("class LossRange")[2].partition("`python bench.py")[0])
    assert "".join(shown.split()) in "".join(inspect.getsource(LossRange).split()).replace(
        '"""Asinthedocstringofbase.py."""', ""
    )
    made = trial(MLP(steps=1), adamw)
    measure = LossRange(batches=3)
    assert measure.fits(made) is None
    assert measure.line(measure.run(made)).startswith("losses from 2.")


def test_two_loops_of_one_seed_are_alike_and_a_copy_is_too() -> None:
    first, second = (Loop(MLP(steps=1), Recipe("a", adamw), Settings(1, seed=3), trial(MLP(steps=1), adamw).device)
                     for _ in range(2))  # fmt: skip
    copied = Loop(first.workload, first.recipe, first.settings, first.device, like=first.model)
    for a, b, c in zip(first.parameters, second.parameters, copied.parameters, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert a.data_ptr() != c.data_ptr()

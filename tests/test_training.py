"""Every optimizer of ours trains with the arguments of its YAML."""

from typing import Any

import pytest

from optimeter.measure.jobs.build import build_workload, optimizer_builder
from optimeter.measure.jobs.parts import about
from tests.conftest import composed, names
from tests.trials import train

OURS = [
    n
    for n in names("optimizer")
    if n != "any" and composed(f"optimizer={n}")["optimizer"]["_target_"].startswith("optimeter.optimizers.")
]


def row(name: str) -> Any:
    """With 8-bit moments it trains as with 32-bit ones, which `make test` has."""
    sibling = name.removesuffix("8bit")
    marks = pytest.mark.thorough if sibling != name and sibling in OURS else ()
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", map(row, OURS))
def test_ours_train(name: str) -> None:
    sparse = about(composed(f"optimizer={name}")["optimizer"])["gradients"] == "sparse"
    config = composed(f"optimizer={name}", f"workload={'embedding' if sparse else 'mlp'}")
    workload = build_workload(config["workload"])
    said = {key: about(config["optimizer"])[key] for key in ("closure", "hessian_every", "roles")}
    blocks = train(workload, optimizer_builder(config["optimizer"]), steps=config["steps"], **said)
    quality = blocks.quality
    assert blocks.status == "ok", blocks.reason
    assert blocks.checks.parameters_moved
    if sparse:
        assert quality.final_loss < 0.9 * quality.first_loss
    else:
        assert quality.score >= 0.93

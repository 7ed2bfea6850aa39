"""The ledger: every byte an optimizer holds, wherever it hides, and the same bytes predicted without allocating any."""

from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import _foreach_supported_types

from optimeter.measure.jobs.build import optimizer_builder
from optimeter.measure.memory.ledger import leaves, ledger, role_of, tensor_bytes
from optimeter.measure.memory.prediction import predict, to_mode
from tests.conftest import composed, names

YAMLS = [name for name in names("optimizer") if name != "any"]
# Bytes a parameter on one 4096×1024 fp32 matrix; what is not listed is only predicted and walked.
EXPECTED = {
    **dict.fromkeys(("adam", "adamw", "bnb_adamw", "torch_adam", "torch_adamw", "torch_adamw_foreach"), 8.0),
    **dict.fromkeys(("torch_adamw_fused", "sparse_adam", "torch_sparse_adam", "schedulefree_adamw"), 8.0),
    **dict.fromkeys(("bnb_adamw8bit", "bnb_adam8bit", "bnb_paged_adamw8bit", "torchao_adamw8bit"), 2.03),
    **dict.fromkeys(("torch_muon", "torch_sgd", "adafactor_momentum", "po_lion", "po_came"), 4.0),
    **dict.fromkeys(("adafactor", "adafactor_trainer", "torch_adafactor", "hf_adafactor"), 0.005),
    "torchao_adamw4bit": 1.06,
    "bnb_lion8bit": 1.02,
    "bnb_ademamix8bit": 3.05,
    "prodigy": 16.0,
}
ROOTED = ("shampoo_original", "po_soap")  # the roots or axes of 4096×4096 statistics take half a minute
devices = pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])


def spec_of(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = composed(f"optimizer={name}")["optimizer"]
    return spec


@devices
@pytest.mark.parametrize("name", YAMLS)
def test_walked_equals_predicted(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    spec = spec_of(name)
    build, sparse = optimizer_builder(spec), (spec.get("about") or {}).get("gradients") == "sparse"
    rows = 256 if name in ROOTED else 4096
    p = nn.Parameter(torch.ones(rows, 1024, device=device))  # Prodigy keeps less for a weight that is all 0
    optimizer = build([("weight", p)])
    to_mode(optimizer, "train")
    for _ in range(2):
        g = (
            torch.ones_like(p)
            if not sparse
            else torch.sparse_coo_tensor([[3]], torch.ones(1, 1024), p.shape, device=device)
        )
        p.grad = g
        optimizer.step()
    held = ledger(optimizer)
    assert predict(build, [("weight", p)], sparse).ledger == held
    assert sum(held.by_role.values()) == sum(held.by_dtype.values()) == held.state_bytes
    if name in EXPECTED:
        assert held.state_bytes / p.numel() == pytest.approx(
            EXPECTED[name], abs=0.01 if EXPECTED[name] > 0.01 else 1e-3
        )
    in_8_bits = "8bit" in name or "4bit" in name or "fp8" in name or spec.get("storage") == "8bit"
    assert held.share_8bit == in_8_bits


def test_what_lies_where_is_told() -> None:
    """torch's own Adam keeps its step on the host, wherever the weight is."""
    p = nn.Parameter(torch.ones(3, device="meta"))
    optimizer = torch.optim.Adam([p], foreach=False)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert ledger(optimizer).by_device == {"meta": 24, "cpu": 4}


def test_a_paged_optimizer_is_predicted_without_its_pages() -> None:
    """Its pages are real memory, also where its tensors are fake."""
    paged: list[bool] = []

    class Paged(torch.optim.SGD):
        is_paged = True

        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, lr=0.1)
            self.page_mng = Box([torch.ones(5)])  # the pages of another optimizer

        def step(self, closure: Any = None) -> Any:
            paged.append(self.is_paged)
            return super().step(closure)

    found = predict(lambda named: Paged([p for _, p in named]), [("weight", nn.Parameter(torch.ones(3)))])
    assert paged == [False, False]
    assert found.ledger.state_bytes == 0


def test_fake_parameters_may_take_the_foreach_path_only_while_predicting() -> None:
    seen: list[bool] = []

    class Looks(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append(all(type(p) in _foreach_supported_types for p in self.param_groups[0]["params"]))
            return super().step(closure)

    before = list(_foreach_supported_types)
    predict(lambda named: Looks([p for _, p in named], lr=0.1), [("weight", nn.Parameter(torch.ones(3)))])
    assert seen == [True, True]
    assert _foreach_supported_types == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA build of torch and a device")
def test_a_plan_for_cuda_has_the_temporaries_of_the_foreach_path() -> None:
    named = [(f"weight{i}", nn.Parameter(torch.ones(1024, 1024, device="cuda"))) for i in range(16)]
    each, default = (predict(partial(torch_adamw, foreach=foreach), named).transient_bytes for foreach in (False, None))
    assert default > 3 * each


def torch_adamw(named: Any, **settings: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for _, p in named], **settings)


class Hides(torch.optim.SGD):
    """Keeps 400 bytes in each of several places that are not `optimizer.state`."""

    def __init__(self, params: Any, where: str) -> None:
        super().__init__(params, lr=0.1)
        hidden = torch.zeros(100)
        nested = Box({"deep": [deque([(hidden,)])]})
        places: dict[str, Any] = {"attribute": hidden, "list": [hidden], "object": nested, "array": np.zeros(50)}
        if where == "group":
            self.param_groups[0]["anchor"] = hidden
        elif where == "optimizer":
            inner = nn.Parameter(torch.zeros(1))
            self.inner = torch.optim.SGD([inner], lr=0.1)
            self.inner.state[inner]["momentum_buffer"] = hidden
        elif where == "parameter":
            self.param_groups[0]["params"][0].momentum = hidden
        elif where == "partial":
            self.hidden = partial(print, hidden)
        elif where == "slots":
            self.slotted = Slotted()
            self.slotted.moment = hidden
        else:
            self.hidden = places[where]


@dataclass
class Box:
    inside: Any


class Slotted:
    __slots__ = ("moment",)
    moment: torch.Tensor


@pytest.mark.parametrize(
    "where", ["attribute", "list", "object", "array", "group", "optimizer", "slots", "parameter", "partial"]
)
def test_hidden_state_is_counted(where: str) -> None:
    optimizer = Hides([nn.Parameter(torch.zeros(7))], where)
    extra = 4 if where == "optimizer" else 0  # the inner optimizer's own parameter
    assert ledger(optimizer).state_bytes == 400 + extra


def test_parameters_gradients_buffers_and_views_are_counted_once_or_not_at_all() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.model = model  # type: ignore[attr-defined]
    model(torch.ones(4, 8)).sum().backward()
    optimizer.kept = [p.grad for p in model.parameters()]  # type: ignore[attr-defined]
    assert ledger(optimizer, model).state_bytes == 0
    whole = torch.zeros(1000)
    optimizer.state[model[0].weight]["exp_avg"] = whole[:10]
    optimizer.state[model[0].bias]["exp_avg"] = whole[10:20]
    held = ledger(optimizer, model)
    assert held.state_bytes == 4000, "a view keeps its whole storage alive"
    assert held.by_role == {"first_moment": 4000}


def test_subclasses_are_unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    from torchao.optim import AdamW4bit

    p = nn.Parameter(torch.zeros(4096))
    p.grad = torch.ones(4096)
    optimizer = AdamW4bit([p])
    optimizer.step()
    moment = optimizer.state[p]["exp_avg"]
    assert moment.numel() * moment.element_size() == 4 * 4096, "what the subclass says of itself"
    assert sum(leaf.untyped_storage().nbytes() for leaf in leaves(moment)) < 4096
    assert ledger(optimizer).share_8bit == 1.0


def test_sparse_gradients_are_their_indices_and_values() -> None:
    g = torch.sparse_coo_tensor([[1, 2]], torch.ones(2, 3), (10, 3))
    assert tensor_bytes([g, None, g]) == 2 * 8 + 6 * 4


@pytest.mark.parametrize(
    ("path", "role"),
    [
        (("exp_avg",), "first_moment"),
        (("base", "state", "exp_avg_sq", "codes"), "second_moment"),
        (("s",), "s"),
        (("anchors",), "anchors"),
        ((), "other"),
        (("residual_row",), "residual"),
    ],
)
def test_roles(path: tuple[str, ...], role: str) -> None:
    assert role_of(path, {"residual_row": "residual"}) == role


def test_small_tensors_are_not_in_8_bits() -> None:
    import bitsandbytes

    model = nn.Linear(64, 64)  # 4,096 weights in 8 bits, 64 biases in 32
    optimizer = bitsandbytes.optim.AdamW8bit(model.parameters())
    model(torch.ones(2, 64)).sum().backward()
    optimizer.step()
    assert ledger(optimizer, model).share_8bit == pytest.approx(4096 / 4160)


def test_prediction_allocates_nothing_and_counts_host_reads() -> None:
    with torch.device("meta"):
        model = nn.Linear(1 << 16, 1 << 15)  # 8.6 GB in fp32
    cpu = [(name, Fake(p)) for name, p in model.named_parameters()]
    found = predict(lambda named: torch.optim.Adafactor([p for _, p in named]), cpu)  # type: ignore[arg-type]
    assert found.ledger.state_bytes < 1e6
    assert found.host_reads > 0
    assert predict(lambda named: torch.optim.AdamW([p for _, p in named], fused=True), cpu).host_reads == 0  # type: ignore[arg-type]


class Fake:
    """The shape of a parameter that is never allocated."""

    requires_grad, device = True, torch.device("cpu")

    def __init__(self, p: torch.Tensor) -> None:
        self.shape, self.dtype = p.shape, p.dtype


def test_every_optimizer_has_its_file(tmp_path: Path) -> None:
    from optimeter import optimizers

    classes = [name for name, value in vars(optimizers).items() if isinstance(value, type)]
    targets = {spec_of(name)["_target_"] for name in YAMLS}
    assert {f"optimeter.optimizers.{name}" for name in classes} <= targets

"""CustomAdamW as a whole: every flag against the plain formula, LoRA factors by name, resume, bytes, refusals."""

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from optimeter.optimizers import CustomAdamW
from optimeter.optimizers.custom.lora import role_and_stem
from optimeter.optimizers.custom_adamw import TECHNIQUES
from tests import references

NAMED_SHAPES = {
    "unet.q.lora_A.default.weight": (3, 11),
    "norm.bias": (6,),
    "unet.q.lora_B.default.weight": (7, 3),
    "out.weight": (5, 8),
}
PAIR = [(0, 2)]  # the places of A and B
# How the plain formula turns each flag off.
OFF: dict[str, dict[str, Any]] = {
    "use_spd": {"spd": None},
    "use_cautious": {"cautious": False},
    "use_orthogonal_grad": {"orthogonal": False},
    "use_adopt_stability": {"adopt": False},
    "use_grams": {"grams": False},
    "use_agr": {"agr": False},
    "use_tam": {"tam": None},
    "use_alora": {"eta": None},
    "dynamic_weight_decay": {"curve": None},
}
# A learning rate at which everything has something to do in 25 steps, and a curve that bends among them.
LOUD: dict[str, Any] = {"lr": 0.03, "weight_decay": 0.1, "spd_lambda": 0.7, "wd_transition_steps": 5, "tam_beta": 0.9}
LOUD_FORMULA = {"lr": 0.03, "decay": 0.1, "spd": 0.7, "curve": (5, 0.7, 0.1), "tam": 0.9}


def start() -> dict[str, nn.Parameter]:
    rng = np.random.default_rng(0)
    return {name: nn.Parameter(torch.tensor(rng.normal(size=shape))) for name, shape in NAMED_SHAPES.items()}


def gradients(steps: int = 25) -> list[list[np.ndarray]]:
    """Noise round a gradient that stays: updates and gradients agree mostly, not always."""
    rng = np.random.default_rng(1)
    kept = [rng.normal(size=shape) for shape in NAMED_SHAPES.values()]
    return [[0.3 * mean + rng.normal(size=mean.shape) for mean in kept] for _ in range(steps)]


def trained(order: list[str] | None = None, steps: int = 25, **arguments: Any) -> list[np.ndarray]:
    named = start()
    optimizer = CustomAdamW([(name, named[name]) for name in order or named], **{"storage": "fp32"} | arguments)
    for step in gradients(steps):
        for p, g in zip(named.values(), step, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
    return [p.detach().numpy() for p in named.values()]


def formula(**arguments: Any) -> list[np.ndarray]:
    return references.custom_adamw([p.detach().numpy() for p in start().values()], gradients(), PAIR, **arguments)


def assert_same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def differs(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return any(np.abs(a - b).max() > 1e-6 for a, b in zip(ours, theirs, strict=True))


ALL_OFF = dict.fromkeys(TECHNIQUES, False)
FORMULA_OFF: dict[str, Any] = {name: value for off in OFF.values() for name, value in off.items()}


@pytest.mark.parametrize("flag", [None, *TECHNIQUES])
def test_each_flag_alone_is_the_plain_formula(flag: str | None) -> None:
    off = FORMULA_OFF | {} if flag is None else {k: v for k, v in FORMULA_OFF.items() if k not in OFF[flag]}
    turned_on = {"use_cautious": {"cautious": True}, "use_orthogonal_grad": {"orthogonal": True}}.get(flag or "", {})
    ours = trained(**LOUD | ALL_OFF | ({flag: True} if flag else {}))
    assert_same(ours, formula(**LOUD_FORMULA | off | turned_on))
    assert flag is None or differs(ours, trained(**LOUD | ALL_OFF))


@pytest.mark.parametrize("flag", [flag for flag in TECHNIQUES if flag not in ("use_cautious", "use_orthogonal_grad")])
def test_each_flag_taken_from_the_defaults_is_the_plain_formula(flag: str) -> None:
    ours = trained(**LOUD | {flag: False})
    assert_same(ours, formula(**LOUD_FORMULA | OFF[flag]))
    assert differs(ours, trained(**LOUD))


def test_the_defaults_are_the_plain_formula() -> None:
    assert_same(trained(), formula())
    assert_same(trained(**LOUD), formula(**LOUD_FORMULA))


def test_cautious_in_place_of_grams_with_everything_else_on() -> None:
    flags = {"use_grams": False, "use_cautious": True, "use_orthogonal_grad": True}
    assert_same(trained(**LOUD | flags), formula(**LOUD_FORMULA, grams=False, cautious=True, orthogonal=True))


def test_the_order_of_the_parameters_does_not_matter() -> None:
    for a, b in zip(trained(**LOUD), trained([*NAMED_SHAPES][::-1], **LOUD), strict=True):
        assert np.array_equal(a, b)


def test_a_pair_is_found_across_groups() -> None:
    results = []
    for groups in (1, 2):
        named = start()
        pairs = list(named.items())
        parts = [pairs] if groups == 1 else [pairs[:2], pairs[2:]]
        optimizer = CustomAdamW([{"params": part} for part in parts], storage="fp32", **LOUD)
        for step in gradients(6):
            for p, g in zip(named.values(), step, strict=True):
                p.grad = torch.tensor(g)
            optimizer.step()
        results.append([p.detach().numpy() for p in named.values()])
    assert not differs(*results)
    assert optimizer.get_optimization_info()["lora"]["pairs"] == 1


def test_a_partner_may_come_later() -> None:
    a, b = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4, 2))
    optimizer = CustomAdamW([("lora_A", a)])
    for group in ([], [("lora_B", b)]):
        if group:
            optimizer.add_param_group({"params": group})
        a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
        optimizer.step()
        assert ("anchor" in optimizer.state[a]) is (not group)
    assert "anchor" not in optimizer.state[b]


def test_without_names_no_technique_for_pairs_acts() -> None:
    named = start()
    optimizer = CustomAdamW(named.values(), storage="fp32", **LOUD)
    for step in gradients():
        for p, g in zip(named.values(), step, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
    expected = references.custom_adamw([p.detach().numpy() for p in start().values()], gradients(), (), **LOUD_FORMULA)
    assert_same([p.detach().numpy() for p in named.values()], expected)
    info = optimizer.get_optimization_info()
    assert set(info["idle"]) == {"use_alora", "dynamic_weight_decay"}
    assert "names" in info["idle"]["use_alora"]


def test_a_parameter_may_be_stepped_alone() -> None:
    """As when gradients are released in the backward: B reads A as it is then."""
    named = start()
    optimizer = CustomAdamW(named.items(), storage="fp32", **LOUD)
    b = named["unet.q.lora_B.default.weight"]
    for g in gradients(3):
        b.grad = torch.tensor(g[2])
        optimizer.step_parameter(b, optimizer.param_groups[0])
    whole, start_b = trained(steps=3, **LOUD | {"use_alora": False})[2], start()["unet.q.lora_B.default.weight"]
    assert not np.allclose(b.detach().numpy(), whole)
    assert not torch.equal(b, start_b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("storage", ["fp32", "bf16", "8bit"])
def test_resuming_with_a_lora_is_exact(dtype: torch.dtype, storage: str) -> None:
    def build(named: dict[str, nn.Parameter]) -> CustomAdamW:
        return CustomAdamW(named.items(), storage=storage, min_8bit_size=0, **LOUD)

    results = []
    for stop in (None, 3):
        named = {name: nn.Parameter(p.detach().to(dtype)) for name, p in start().items()}
        optimizer = build(named)
        for number, step in enumerate(gradients(6)):
            if number == stop:
                file = io.BytesIO()
                torch.save(optimizer.state_dict(), file)
                file.seek(0)
                optimizer = build(named)
                optimizer.load_state_dict(torch.load(file, weights_only=True))
            for p, g in zip(named.values(), step, strict=True):
                p.grad = torch.tensor(g, dtype=dtype)
            optimizer.step()
        results.append(named.values())
        assert optimizer.get_optimization_info()["lora"]["pairs"] == 1
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_copy_finds_its_own_factors() -> None:
    named = start()
    twins, twin = copy.deepcopy((named, CustomAdamW(named.items())))
    assert [*twin.factors.pairs] == [twins["unet.q.lora_B.default.weight"]]


def lora(spd: bool = True) -> tuple[nn.ModuleDict, CustomAdamW]:
    rank, inside, out = 16, 320, 640
    model = nn.ModuleDict({"lora_A": nn.Linear(inside, rank, False), "lora_B": nn.Linear(rank, out, False)})
    model["base"] = nn.Linear(inside, 64, False)
    optimizer = CustomAdamW(model.named_parameters(), use_spd=spd)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("spd", [True, False])
def test_bytes_of_a_lora_and_of_full_weights(spd: bool) -> None:
    from optimeter.measure.memory.ledger import ledger

    model, optimizer = lora(spd)
    found = ledger(optimizer)
    elements = sum(p.numel() for p in model.parameters())
    anchor = 4 * model["base"].weight.numel() if spd else 0
    assert found.by_role.get("anchor", 0) == anchor
    assert found.by_role["momentum_alignment"] == 4 * 3
    moments = found.by_role["first_moment"] + found.by_role["second_moment"]
    assert moments == elements * (2 + 8 / 256)
    assert found.state_bytes == moments + 4 * 3 + anchor + found.by_role["code_tables"]


NAMES = [
    ("q.lora_A.weight", ("A", "q.lora_*.weight")),
    ("q.lora_B.weight", ("B", "q.lora_*.weight")),
    ("base_model.model.h.0.lora_A.default.weight", ("A", "base_model.model.h.0.lora_*.default.weight")),
    ("lora_unet_up_blocks_0_to_q.lora_down.weight", ("A", "lora_unet_up_blocks_0_to_q.lora_*.weight")),
    ("lora_unet_up_blocks_0_to_q.lora_up.weight", ("B", "lora_unet_up_blocks_0_to_q.lora_*.weight")),
    ("lora_A.inner.lora_B", ("B", "lora_A.inner.lora_*")),
    ("wte.lora_embedding_A.default", ("A", "wte.lora_embedding_*.default")),
    ("lora_up", ("B", "lora_*")),
    ("lora_upper.weight", None),
    ("explora_A.weight", None),
    ("lora_unet_down_blocks.weight", None),
    ("q.weight", None),
]


@pytest.mark.parametrize(("name", "expected"), NAMES, ids=[name for name, _ in NAMES])
def test_factors_are_known_by_their_names(name: str, expected: tuple[str, str] | None) -> None:
    assert role_and_stem(name) == expected


def test_what_has_no_partner_is_named_and_plain() -> None:
    shapes = {
        "q.lora_A.weight": (4, 8),
        "q.lora_B.weight": (6, 4),
        "k.lora_B.weight": (6, 4),
        "v.lora_A.weight": (4, 8),
        "v.lora_B.weight": (6, 5),  # another rank
        "c.lora_down.weight": (4, 8, 3, 3),
        "c.lora_up.weight": (6, 4, 1, 1),
    }
    named = {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    optimizer = CustomAdamW(named.items())
    for p in named.values():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        optimizer.step()
    unpaired = ["k.lora_B.weight", "v.lora_A.weight", "v.lora_B.weight"]
    info = optimizer.get_optimization_info()
    assert info["type"] == "CustomAdamW"
    assert info["tensors"] == 7
    assert info["lora"] == {"a": 3, "b": 4, "pairs": 2, "unpaired": info["lora"]["unpaired"]}
    assert sorted(info["lora"]["unpaired"]) == unpaired
    assert not info["idle"]
    assert [name for name, p in named.items() if "anchor" in optimizer.state[p]] == unpaired
    assert all(p.isfinite().all() for p in named.values())


def test_allora_scales_the_rows_of_a_convolutions_b() -> None:
    """The rows of B that make a large product take smaller steps; nothing else of the rule looks at them."""
    a, b = nn.Parameter(torch.ones(2, 3, 3, 3)), nn.Parameter(torch.tensor([[0.0, 0], [1, 1], [5, 5]])[..., None, None])
    before = b.detach().clone()
    off = ALL_OFF | {"use_alora": True}
    optimizer = CustomAdamW([("x.lora_down.weight", a), ("x.lora_up.weight", b)], weight_decay=0.0, **off)
    b.grad = torch.ones_like(b)
    optimizer.step()
    steps = (before - b.detach())[:, 0, 0, 0] / 1e-3
    norms = torch.tensor([0.0, 2, 10]) * 27**0.5
    torch.testing.assert_close(steps, (norms + 21.0**-2).rsqrt(), rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"use_cautious": True}, "use_grams makes every sign agree"),
        ({"amsgrad": True}, "use_adopt_stability=False"),
        ({"spd_lambda": -1}, "spd_lambda must be at least 0"),
        ({"tam_beta": 1.0}, "tam_beta"),
        ({"alora_ratio": 0}, "alora_ratio must be above 0"),
        ({"wd_transition_steps": 0}, "wd_transition_steps must be at least 1"),
        ({"wd_decay_factor": 1.5}, "wd_decay_factor must be from 0 to 1"),
        ({"wd_min_ratio": -0.1}, "wd_min_ratio"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"CustomAdamW: .*{words}"):
        CustomAdamW([nn.Parameter(torch.ones(2))], **arguments)


def test_leftovers_of_bitsandbytes_are_refused() -> None:
    with pytest.raises(TypeError, match="CustomAdamW takes no argument percentile_clipping"):
        CustomAdamW([nn.Parameter(torch.ones(2))], percentile_clipping=100)  # type: ignore[call-arg]


def test_a_group_may_choose_its_own_flags() -> None:
    p, q = (nn.Parameter(torch.ones(3)) for _ in range(2))
    groups = [{"params": [p]}, {"params": [q], "use_grams": False, "use_cautious": True, "use_spd": False}]
    optimizer = CustomAdamW(groups)
    p.grad = q.grad = torch.ones(3)
    optimizer.step()
    assert "anchor" in optimizer.state[p]
    assert "anchor" not in optimizer.state[q]

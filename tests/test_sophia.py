"""Sophia: its rule against others' code, its estimators against the matrices that they estimate, and the run loop."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sophia_opt
import torch
from pytorch_optimizer import SophiaH as TheirSophiaH
from torch import nn
from torch.nn import functional as F

from optimeter import optimizers, workloads
from optimeter.measure.methods.settings import to_device
from optimeter.optimizers.sophia import NOISE, gaussian_like
from tests import references
from tests.cases import Case, fill_gradients, parameters_for, same_bits, train

SCHEDULE: dict[str, Any] = {"steps": 10}
drawing = pytest.mark.parametrize("kind", ["mlp", "layer", "embedding", "sd_lora", "t5"])
both = pytest.mark.parametrize("name", ["SophiaG", "SophiaH"])


def linear_in(parameters: list[nn.Parameter], slopes: list[torch.Tensor]) -> torch.Tensor:
    return sum((p * slope).sum() for p, slope in zip(parameters, slopes, strict=True))  # type: ignore[return-value]


def quadratic_in(parameters: list[nn.Parameter], curvatures: list[torch.Tensor]) -> torch.Tensor:
    terms = (p.square() * curvature for p, curvature in zip(parameters, curvatures, strict=True))
    return sum(term.sum() for term in terms) / 2  # type: ignore[return-value]


def drawn(step: int, parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]


def difference(ours: list[nn.Parameter], theirs: list[nn.Parameter], case: Case) -> float:
    """Largest difference, as a share of the largest movement."""
    a, b, start = (torch.cat([p.detach().flatten() for p in ps]) for ps in (ours, theirs, double(case)))
    return ((a - b).abs().max() / (b - start).abs().max()).item()


def double(case: Case) -> list[nn.Parameter]:
    return parameters_for(case, torch.float64)


def test_g_equals_the_authors_code() -> None:
    case, ours, theirs = Case("SophiaG"), double(Case("SophiaG")), double(Case("SophiaG"))
    one = optimizers.SophiaG(ours, lr=1e-2, betas=(0.965, 0.99), gamma=0.4)
    other = sophia_opt.SophiaG(theirs, lr=1e-2, rho=0.4)
    for step in range(1, 26):
        if step % 5 == 2:  # later than the first step: h is 0 at first, on both sides
            slopes = drawn(step, ours)
            one.update_hessian(linear_in(ours, slopes), samples=32)
            for p, slope in zip(theirs, slopes, strict=True):
                p.grad = slope.clone()
            other.update_hessian()
        for parameters in (ours, theirs):
            fill_gradients(parameters, case, step)
        one.step()
        other.step(bs=32)
    assert difference(ours, theirs, case) < 1e-11


def test_h_equals_pytorch_optimizers() -> None:
    case, ours, theirs = Case("SophiaH"), double(Case("SophiaH")), double(Case("SophiaH"))
    one = optimizers.SophiaH(ours, lr=6e-4, gamma=0.01, eps=1e-14, weight_decay=0.5)
    other = TheirSophiaH(theirs, lr=0.06, p=0.01, weight_decay=0.5, fixed_decay=False, update_period=100, foreach=False)
    for group in other.param_groups:  # theirs decays by lr·weight_decay, with an lr that is 100 times ours
        group["weight_decay"] = 0.005
    for step in range(1, 26):
        for parameters in (ours, theirs):
            fill_gradients(parameters, case, step)
        given = None
        if step % 5 == 1:
            curvatures = drawn(step, ours)
            noise = [gaussian_like(p, (0, 1 + step // 5, NOISE, index)) for index, p in enumerate(ours)]
            given = [u.square() * curvature for u, curvature in zip(noise, curvatures, strict=True)]
            one.update_hessian(quadratic_in(ours, curvatures))
        one.step()
        other.step(hessian=given)
    assert difference(ours, theirs, case) < 1e-11


@pytest.mark.parametrize("gamma", [0.01, 3.0])
def test_equals_the_plain_formula(gamma: float) -> None:
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(5, 7)), [rng.normal(size=(5, 7)) for _ in range(12)]
    slopes = {step: rng.normal(size=(5, 7)) for step in (3, 8)}
    p = nn.Parameter(torch.tensor(start))
    optimizer = optimizers.SophiaG([p], lr=0.1, gamma=gamma)
    for step, g in enumerate(gradients, start=1):
        p.grad = torch.tensor(g)
        if step in slopes:
            optimizer.update_hessian((p * torch.tensor(slopes[step])).sum(), samples=6)
        optimizer.step()
    expected = references.sophia(start, gradients, {t: 6 * slope**2 for t, slope in slopes.items()}, 0.1, gamma)
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12, atol=1e-14)


@both
def test_before_the_first_estimate_every_coordinate_moves_by_lr(name: str) -> None:
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([1e-3, -1.0, 0.0])
    getattr(optimizers, name)([p], lr=0.5).step()
    assert p.tolist() == [-0.5, 0.5, 0.0]


# ---------------------------------------------------------------------------------------------------- estimators


def far_off(estimates: torch.Tensor, truth: torch.Tensor) -> float:
    """The largest distance of the mean of (n, …) estimates from the truth, in standard errors."""
    errors = estimates.std(0) / len(estimates) ** 0.5
    return ((estimates.mean(0) - truth).abs() / errors.clamp(min=1e-12)).max().item()


def test_hutchinsons_mean_is_the_diagonal_of_the_hessian() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    matrix = (matrix + matrix.T) / 2 + torch.eye(8).roll(4, 1)  # what would be added to the diagonal, were u repeated
    blocks = [nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64)) for _ in range(2)]
    optimizer = optimizers.SophiaH([{"params": blocks[:1]}, {"params": blocks[1:]}], betas=(0.9, 0.0))
    found = []
    for _ in range(4000):
        z = torch.cat(blocks)
        optimizer.update_hessian(z @ matrix @ z / 2)
        found.append(torch.cat([optimizer.state[p]["hessian"].clone() for p in blocks]))
    assert far_off(torch.stack(found), matrix.diag()) < 4.5
    assert far_off(torch.stack(found), matrix.diag() + 1) > 10


class Denoiser(nn.Linear):
    """Takes and gives what a UNet of diffusers does."""

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
        return SimpleNamespace(sample=super().forward(noisy) + 0 * (timestep + encoder_hidden_states))


class Speller(nn.Embedding):
    """Takes and gives what T5 of transformers does: the next token's scores from this one alone."""

    def forward(self, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=super().forward(decoder_input_ids))


@dataclass
class Labels:
    """A workload that draws labels, with a small model and a batch for it.

    outputs: what the model gave → (labels, k), the parameters of each label's distribution; hessian: of −log p in them.
    """

    workload: workloads.Workload
    model: nn.Module
    batch: Any
    hessian: Callable[[torch.Tensor], torch.Tensor]
    given: Callable[[Any], Any] = lambda batch: batch[:1]  # what of the batch the model takes: a tuple or a dict
    outputs: Callable[[Any], torch.Tensor] = lambda out: out


def labels_of(kind: str) -> Labels:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    if kind == "mlp":
        mlp = workloads.MLP(batch=8, **SCHEDULE)
        return Labels(mlp, nn.Linear(64, 10), next(iter(mlp.batches("train", 0))), softmax_hessian)
    if kind == "layer":
        layer = workloads.Layer(shape=[6, 4], batch=5, **SCHEDULE)
        return Labels(layer, layer.model(), next(iter(layer.batches("train", 0))), unit_hessian)
    if kind == "sd_lora":
        batch = {
            "noisy": torch.randn(3, 4, 2, 9, generator=generator),
            "noise": torch.randn(3, 4, 2, 3, generator=generator),
            "timestep": torch.zeros(1),
            "text": torch.zeros(1),
        }
        names = {"noisy": "noisy", "timestep": "timestep", "encoder_hidden_states": "text"}
        return Labels(
            workloads.SDLora(**SCHEDULE),
            Denoiser(9, 3),
            batch,
            lambda out: 2 * unit_hessian(out),  # (x − μ)²
            lambda batch: {key: batch[name] for key, name in names.items()},
            lambda out: out.sample.reshape(-1, 1),
        )
    if kind == "t5":
        tokens = torch.randint(7, (3, 4), generator=generator)
        return Labels(
            workloads.T5(**SCHEDULE),
            Speller(7, 7),
            {"input_ids": tokens, "decoder_input_ids": tokens, "labels": tokens},
            softmax_hessian,
            lambda batch: {"input_ids": tokens, "decoder_input_ids": tokens, "use_cache": False},
            lambda out: out.logits.flatten(0, 1),
        )
    from optimeter.workloads.embedding import SkipGram

    model = SkipGram(8, 3, sparse=False)
    nn.init.normal_(model.word.weight)
    nn.init.normal_(model.context.weight)
    pairs = torch.randint(8, (5,), generator=generator), torch.randint(8, (5, 6), generator=generator)
    return Labels(workloads.Embedding(**SCHEDULE), model, pairs, logistic_hessian, lambda batch: batch)


def unit_hessian(out: torch.Tensor) -> torch.Tensor:
    return torch.eye(out.shape[1]).expand(len(out), -1, -1)


def logistic_hessian(out: torch.Tensor) -> torch.Tensor:
    return (out.sigmoid() * (1 - out.sigmoid())).diag_embed()


def softmax_hessian(logits: torch.Tensor) -> torch.Tensor:
    p = logits.softmax(1)
    return p.diag_embed() - p.unsqueeze(2) * p.unsqueeze(1)


@drawing
def test_bartletts_mean_is_the_diagonal_of_the_gauss_newton_matrix(kind: str) -> None:
    case = labels_of(kind)
    workload, model, batch = case.workload, case.model, case.batch
    names, parameters = zip(*model.named_parameters(), strict=True)
    given = case.given(batch)
    inputs = ((), given) if isinstance(given, dict) else (given, {})

    def outputs(*values: torch.Tensor) -> torch.Tensor:
        return case.outputs(torch.func.functional_call(model, dict(zip(names, values, strict=True)), *inputs))

    out = outputs(*parameters).detach()
    jacobian = torch.cat([j.flatten(2) for j in torch.autograd.functional.jacobian(outputs, parameters)], 2)
    samples = workload.sampled_loss(model, batch, torch.Generator())[1]
    truth = torch.einsum("bkp,bkl,blp->p", jacobian, case.hessian(out), jacobian) / samples
    optimizer = optimizers.SophiaG(parameters, betas=(0.9, 0.0))
    generator, found, gradients = torch.Generator().manual_seed(0), [], []
    for _ in range(3000):
        loss, samples = workload.sampled_loss(model, batch, generator)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)]))
        optimizer.update_hessian(loss, samples)
        found.append(torch.cat([optimizer.state[p]["hessian"].flatten() for p in parameters]))
    often = truth > truth.max() / 100  # the squares of rare labels have no normal mean after so few draws
    assert often.sum() > 20
    assert far_off(torch.stack(found)[:, often], truth[often]) < 5
    assert far_off(torch.stack(gradients)[:, often], torch.zeros(int(often.sum()))) < 5  # the model's own labels
    assert torch.stack(found).sum(1).mean().item() == pytest.approx(truth.sum().item(), rel=0.05)


@drawing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_labels_come_from_the_generator_alone(kind: str, dtype: torch.dtype) -> None:
    case = labels_of(kind)
    workload, model, batch = case.workload, case.model.to(dtype), to_device(case.batch, torch.device("cpu"), dtype)
    before = torch.get_rng_state()
    losses = [workload.sampled_loss(model, batch, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1] != losses[2]
    assert losses[0].dim() == 0
    assert losses[0].requires_grad


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_estimate_leaves_gradients_weights_momentum_and_the_global_generator_alone(
    name: str, dtype: torch.dtype
) -> None:
    case = Case(name)
    parameters, optimizer = train(case, 1, dtype=dtype)
    before = [[x.clone() for x in (p, p.grad, optimizer.state[p]["exp_avg"])] for p in parameters]
    h, grads, generator = [optimizer.state[p]["hessian"].clone() for p in parameters], [], torch.get_rng_state()
    grads = [p.grad for p in parameters]
    optimizer.update_hessian(quadratic_in(parameters, drawn(0, parameters)), samples=3)
    assert torch.equal(torch.get_rng_state(), generator)
    for p, grad, old in zip(parameters, grads, before, strict=True):
        assert p.grad is grad
        assert same_bits((p, p.grad, optimizer.state[p]["exp_avg"]), old)
    assert not any(torch.equal(optimizer.state[p]["hessian"], old) for p, old in zip(parameters, h, strict=True))
    assert not any(x.requires_grad for p in parameters for x in (optimizer.state[p]["hessian"],))


def test_what_the_loss_does_not_bend_or_does_not_use() -> None:
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = optimizers.SophiaH([used, unused], betas=(0.9, 0.0))
    optimizer.update_hessian(used.square().sum())
    optimizer.update_hessian(3 * used.sum())
    assert optimizer.state[used]["hessian"].tolist() == [0.0, 0.0, 0.0]
    assert unused not in optimizer.state
    bent = nn.Parameter(torch.ones(3))
    optimizer = optimizers.SophiaH([used, bent])
    optimizer.update_hessian(used.sum() + bent.pow(3).sum())
    assert optimizer.state[used]["hessian"].tolist() == [0.0, 0.0, 0.0]
    assert optimizer.state[bent]["hessian"].all()


@both
def test_sparse_gradients_and_no_samples_are_refused(name: str) -> None:
    table = nn.Embedding(4, 2, sparse=True)
    with pytest.raises(RuntimeError, match="dense gradients"):
        getattr(optimizers, name)(table.parameters()).update_hessian(table(torch.tensor([1])).square().sum())
    with pytest.raises(ValueError, match=f"{name}: samples must be at least 1"):
        getattr(optimizers, name)(table.parameters()).update_hessian(torch.ones(()), samples=0)


def test_ascending_is_descending_the_negative() -> None:
    case, up, down = Case("SophiaH"), parameters_for(Case("SophiaH")), parameters_for(Case("SophiaH"))
    for parameters, sign in ((up, -1.0), (down, 1.0)):
        optimizer = case.build(parameters, maximize=sign < 0, gamma=1.0)
        for step in range(4):
            optimizer.update_hessian(sign * quadratic_in(parameters, [torch.ones_like(p) for p in parameters]))
            fill_gradients(parameters, case, step, sign)
            optimizer.step()
    assert same_bits(up, down)


@both
@pytest.mark.parametrize("storage", ["bf16", "8bit"])
def test_curvature_rests_in_any_storage_and_steps_do_not_round_it_again(name: str, storage: str) -> None:
    exact, small = (
        getattr(optimizers, name)([nn.Parameter(torch.ones(8, 512))], storage=kind, min_8bit_size=0)
        for kind in ("fp32", storage)
    )
    for optimizer in (exact, small):
        (p,) = optimizer.param_groups[0]["params"]
        for n in range(20):
            # bends down: no 8-bit code stands for the lower end of a block, so that each rounding would shrink it
            optimizer.update_hessian(n * p.sum() - (p.pow(4) * (1 + torch.arange(512)) / 512).sum(), samples=2)
    ours, theirs = (next(iter(optimizer.state.values())) for optimizer in (small, exact))
    assert ours["hessian"].dtype == {"bf16": torch.bfloat16, "8bit": torch.uint8}[storage]
    moment = small.layout(p, small.param_groups[0])["hessian"]
    from optimeter.optimizers.core.storage import storage_of

    loaded = storage_of(small.param_groups[0]).load(ours, "hessian", moment, torch.float32)
    assert loaded.mean().item() == pytest.approx(theirs["hessian"].mean().item(), rel=0.02)
    before = {key: ours[key].clone() for key in ours if key.startswith("hessian")}
    for _ in range(30):
        p.grad = torch.ones_like(p)
        small.step()
    assert all(torch.equal(ours[key], value) for key, value in before.items())


def test_softmax_hessian_is_the_cross_entropys() -> None:
    logits = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.functional.hessian(lambda x: F.cross_entropy(x, torch.tensor([2])), logits)
    torch.testing.assert_close(found.view(4, 4), softmax_hessian(logits)[0])

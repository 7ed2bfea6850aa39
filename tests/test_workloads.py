"""The workloads: real data, one split that no seed changes, the same batches for every optimizer, learnable."""

import hashlib
import inspect
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from optimeter import workloads
from optimeter.workloads.core.workload import packaged

SCHEDULE: dict[str, Any] = {"steps": 10}
SMALL = [
    workloads.Toy(**SCHEDULE),
    workloads.Toy(polynomial=[1, 0, 0, 0, 0], dimension=3, **SCHEDULE),
    workloads.MLP(**SCHEDULE),
    workloads.Embedding(**SCHEDULE),
    workloads.Embedding(sparse=True, rows=5000, dim=8, **SCHEDULE),
    workloads.Layer(shape=[12, 7], **SCHEDULE),
]
each = pytest.mark.parametrize("workload", SMALL, ids=lambda workload: type(workload).__name__)


def flat(batch: Any) -> torch.Tensor:
    parts = [part.double().flatten() for part in batch]
    return torch.cat(parts) if parts else torch.empty(0)


@each
def test_batches_depend_on_the_seed_and_on_nothing_else(workload: workloads.Workload) -> None:
    def first(split: str, seed: int) -> torch.Tensor:
        torch.rand(seed + 1)  # what the global generator did must not matter
        return torch.cat([flat(batch) for batch in islice(workload.batches(split, seed), 3)])

    assert torch.equal(first("train", 1), first("train", 1))
    assert torch.equal(first("held_out", 1), first("held_out", 2))
    if not isinstance(workload, workloads.Toy):
        assert not torch.equal(first("train", 1), first("train", 2))


@each
def test_the_model_follows_torchs_seed_and_the_loss_has_a_graph(workload: workloads.Workload) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(workload.model())
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)
    loss = workload.loss(models[0], next(iter(workload.batches("train", 0))))
    loss.backward()
    assert loss.dim() == 0
    assert all(p.grad is not None for p in models[0].parameters())
    assert all(p.grad.is_sparse == (workload.gradients == "sparse") for p in models[0].parameters())


def test_digits_are_split_by_class_without_overlap() -> None:
    (images, labels), (held_images, held_labels) = workloads.MLP(**SCHEDULE).splits
    assert (len(labels), len(held_labels)) == (1437, 360)
    assert held_labels.bincount().tolist() == [36] * 10
    rows = {tuple(row) for row in images.tolist()}
    assert not rows & {tuple(row) for row in held_images.tolist()}
    assert images.min() == 0
    assert images.max() == 1


@pytest.mark.parametrize(
    ("size", "count"), [("tiny", 19_210), ("small", 301_066), ("base", 2_176_010), ("large", 100_995_082)]
)
def test_mlp_sizes(size: str, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in workloads.MLP(size, **SCHEDULE).model().parameters()) == count


def test_toy_is_the_documents_polynomial() -> None:
    workload = workloads.Toy(**SCHEDULE)
    model = workload.model()
    loss = workload.loss(model, ())
    loss.backward()
    assert loss.item() == 3**4 + 3 * 3**3 + 2
    assert model.x.grad.item() == 4 * 3**3 + 9 * 3**2
    assert {name: value.item() for name, value in workload.extra(model).items()} == {"x": 3.0, "f": 164.0}


def test_the_embedding_holds_out_whole_topics_and_starts_at_6_ln_2() -> None:
    workload = workloads.Embedding(**SCHEDULE)
    batch = next(iter(workload.batches("held_out", 0)))
    assert workload.loss(workload.model(), batch).item() == pytest.approx(6 * 0.693147, abs=1e-4)
    assert len(workload.topics) > 50
    assert len(workload.vocabulary) > 3000
    train, held_out = workload.pairs
    assert 0.02 < len(held_out) / len(train) < 0.3
    words, contexts = batch
    assert contexts.shape == (len(words), 6)
    assert contexts.max() < len(workload.vocabulary)


def test_a_wider_table_spreads_the_same_words() -> None:
    narrow, wide = workloads.Embedding(**SCHEDULE), workloads.Embedding(rows=10**6, dim=16, **SCHEDULE)
    a, b = (next(iter(w.batches("train", 0)))[0] for w in (narrow, wide))
    assert torch.equal(b, a * 10**6 // len(narrow.vocabulary))
    assert wide.model().word.weight.shape == (10**6, 16)
    with pytest.raises(ValueError, match="at least"):
        workloads.Embedding(rows=10, **SCHEDULE)


def test_an_optimizer_for_the_other_kind_of_gradient_is_unsuitable() -> None:
    dense, sparse = workloads.MLP(**SCHEDULE), workloads.Embedding(sparse=True, **SCHEDULE)
    for accepted, on_dense, on_sparse in (("dense", True, False), ("sparse", False, True), ("both", True, True)):
        assert (dense.unsuitable({"gradients": accepted}) is None) == on_dense
        assert (sparse.unsuitable({"gradients": accepted}) is None) == on_sparse


def test_a_packages_file_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "somewhere").mkdir()
    (tmp_path / "somewhere" / "__init__.py").touch()
    (tmp_path / "somewhere" / "data.txt").write_text("real")
    monkeypatch.syspath_prepend(str(tmp_path))
    right = hashlib.sha256(b"real").hexdigest()
    assert packaged("somewhere/data.txt", right).read_text() == "real"
    with pytest.raises(RuntimeError, match="constraints"):
        packaged("somewhere/data.txt", right.replace(right[0], "x"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        packaged("somewhere/nothing.txt")


@pytest.mark.parametrize("cls", workloads.Workload.__subclasses__(), ids=lambda cls: cls.__name__)
def test_what_shapes_a_model_and_what_follows_the_optimizer_are_arguments(cls: type[workloads.Workload]) -> None:
    assert {*cls.shaped_by, *cls.follows} <= set(inspect.signature(cls).parameters)

"""What a problem must offer to be measured. A user's own workload subclasses `Workload` and needs no edit here."""

import hashlib
from collections.abc import Iterable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from torch import Generator, Tensor, nn

TRAIN, HELD_OUT = "train", "held_out"


class NoTask(NotImplementedError):
    """A workload cannot be measured in the way that was asked for; the message says why."""


class Workload:
    """A model, its data, its loss and its score.

    `steps`, `eval_every` and `target` (a score to reach, or None) come from its YAML. `data` lists the files of
    installed packages that it reads, ``package/path/in/it``: their hashes become part of a run's identity, as the
    versions of `libraries` do, the distributions that its model is made of; `installed_by` is what brings them.

    `shaped_by` names the constructor's arguments that shape the model, in the order in which reports print them beside
    the workload's name; `size` is printed anyway. `follows` names those that follow the optimizer: runs that differ in
    one of them are still compared, as runs of different optimizers.
    """

    score_name = "loss"
    higher_is_better = False
    gradients = "dense"  # or "sparse": what its parameters receive
    data: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    installed_by: str | None = None  # for pip install; None where the libraries' own names are
    shaped_by: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()

    def __init__(self, *, steps: int, eval_every: int | None = None, target: float | None = None) -> None:
        self.steps, self.eval_every, self.target = steps, eval_every, target

    def model(self) -> nn.Module:
        """A fresh model in fp32 on the CPU, drawn from torch's global generator, which the caller has seeded."""
        raise NotImplementedError

    def skeleton(self) -> nn.Module:
        """The model for its parameters' shapes alone; a large one is built on the meta device, without memory."""
        return self.model()

    def batches(self, split: str, seed: int) -> Iterable[Any]:
        """CPU batches (tensors, or tuples or dicts of them): endless for "train", one pass for "held_out".

        "train" is the same for every optimizer with the same seed; "held_out" does not depend on the seed.
        """
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of one batch, 0-dimensional, with its graph."""
        raise NotImplementedError

    def sampled_loss(self, model: nn.Module, batch: Any, generator: Generator) -> tuple[Tensor, int]:
        """As `loss`, with labels that `generator` draws from the model's own distribution, and how many they are.

        For optimizers that estimate curvature from it; where it is not overridden they cannot train the workload. The
        labels are independent and the loss is the mean of their −log p. `generator` is on the model's device.
        """
        raise NotImplementedError

    def score(self, model: nn.Module) -> float | None:
        """What `target` is compared with, on held-out data; None where the held-out loss is the score."""
        return None

    def extra(self, model: nn.Module) -> dict[str, Tensor]:
        """0-dimensional tensors to record after each step, by name."""
        return {}

    def provenance(self) -> dict[str, Any]:
        """Where the model's first weights came from, once it is built: the record's block `weights`.

        `source` is "random", or what else there is, with `repository` and `revision`; empty where nothing is loaded.
        """
        return {}

    def unsuitable(self, optimizer: Mapping[str, Any]) -> str | None:
        """Why an optimizer with this `about` cannot train this workload, or None."""
        accepted = optimizer.get("gradients", "dense")
        if accepted in (self.gradients, "both"):
            return None
        return f"it takes {accepted} gradients and this workload's are {self.gradients}"


def draw_labels(scores: Tensor, generator: Generator) -> Tensor:
    """A label for each row of `scores` (n, classes), drawn with the probability that the model gives it; (n,).

    A row that is not finite gets any label: on CUDA a draw from NaN would stop the device for the whole process.
    """
    probability = scores.detach().float().softmax(1)
    return probability.where(probability.isfinite(), 1.0).multinomial(1, generator=generator).squeeze(1)


def packaged(name: str, sha256: str | None = None) -> Path:
    """The file `name` (``package/path``) of an installed package, which is not imported.

    Raises FileNotFoundError without it, and RuntimeError where its content is not the pinned one.
    """
    package, _, rest = name.partition("/")
    spec = PathFinder.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / rest
        if path.is_file():
            if sha256 and content_hash(path) != sha256:
                raise RuntimeError(f"{name} is not the file that this workload is defined on; use constraints.txt")
            return path
    raise FileNotFoundError(f"{name}: no such file in an installed package; pip install optimeter brings it")


def content_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""LoRA (Hu et al. 2021, arXiv:2106.09685) on Stable Diffusion's UNet: diffusers' model, peft's adapters.

What trains are low-rank matrices on the attention projections; the loss is DDPM's noise prediction (Ho et al. 2020,
arXiv:2006.11239, equation 14) on latents of real photographs.
"""

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optimeter.workloads.core.cache import Kept
from optimeter.workloads.core.diffusion import (
    DATA,
    DOWN,
    TRIPLES,
    UNETS,
    build_unet,
    cached_base,
    cached_latents,
    draw,
    held_out,
    noise_loss,
    predicted_noise,
)
from optimeter.workloads.core.pretrained import SOURCES, Checkpoint
from optimeter.workloads.core.workload import HELD_OUT, Workload

PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]
REPOSITORY = "stable-diffusion-v1-5/stable-diffusion-v1-5"
RESOLUTION = {"tiny": 64, "sd15": 512}  # pixels
ADAPTED_TO = {"tiny": ("flower",), "sd15": ("china", "flower")}


class SDLora(Workload):
    """Noise prediction of `batch` (crop, timestep, noise) triples; held out are 256 fixed ones.

    Latents are `resolution`/8 wide. The tiny size adapts a base that was trained on one photograph for `base_steps`
    (random weights would teach nothing about LoRA) to the other one; the base is made once and kept.
    """

    data = DATA
    libraries = ("diffusers", "peft", "transformers", "pillow")
    installed_by = "optimeter[finetune]"
    shaped_by = ("rank",)

    def __init__(
        self,
        size: str = "tiny",
        rank: int = 16,
        batch: int = 16,
        resolution: int | None = None,
        gradient_checkpointing: bool = False,
        weights: str = "random",
        repository: str | None = None,
        revision: str | None = None,
        base_steps: int = 300,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        if size not in UNETS:
            raise ValueError(f"workload.size must be one of {', '.join(UNETS)}, not {size!r}")
        for name, number, least in (("rank", rank, 1), ("batch", batch, 1), ("base_steps", base_steps, 0)):
            if not (isinstance(number, int) and number >= least):
                raise ValueError(f"workload.{name} must be a whole number of at least {least}, not {number!r}")
        self.resolution = RESOLUTION[size] if resolution is None else resolution
        step = DOWN * 2 ** (len(UNETS[size]["block_out_channels"]) - 1)  # so that every level of the UNet is whole
        if not (isinstance(self.resolution, int) and self.resolution > 0 and self.resolution % step == 0):
            raise ValueError(f"workload.resolution must be a multiple of {step} pixels, not {resolution!r}")
        if weights not in SOURCES:
            raise ValueError(f"workload.weights must be one of {', '.join(SOURCES)}, not {weights!r}")
        published = REPOSITORY if size == "sd15" else None
        self.checkpoint = Checkpoint(weights, repository or published, revision, "model_index.json", f"size={size}")
        self.size, self.rank, self.batch, self.checkpointing = size, rank, batch, gradient_checkpointing
        self.base_steps = base_steps if size == "tiny" and weights == "random" else 0

    def model(self) -> nn.Module:
        if self.checkpoint.source != "random":
            from diffusers import UNet2DConditionModel

            unet = self.checkpoint.load(UNet2DConditionModel, subfolder="unet", torch_dtype=torch.float32)
            return self._adapted(unet.train())
        unet = build_unet(self.size, self.resolution)
        if self.base:
            unet.load_state_dict(self.base.tensors)
        return self._adapted(unet)

    def skeleton(self) -> nn.Module:
        with torch.device("meta"):
            return self._adapted(build_unet(self.size, self.resolution))

    def _adapted(self, unet: Any) -> nn.Module:
        """Frozen, with trainable A (Gaussian) and B (zero) of `rank` on each attention projection."""
        from peft import LoraConfig

        unet.requires_grad_(False)
        config = LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=PROJECTIONS, init_lora_weights="gaussian")
        unet.add_adapter(config)
        if self.checkpointing:
            unet.enable_gradient_checkpointing()
        return unet

    @cached_property
    def base(self) -> Kept | None:
        """The trained base of the tiny size."""
        if not self.base_steps:
            return None
        return cached_base(self.size, self.resolution, self.base_steps)

    @cached_property
    def latents(self) -> Kept:
        """The photographs' latents and text states."""
        return cached_latents(self.size, self.resolution, self.checkpoint)

    def provenance(self) -> dict[str, Any]:
        base = {"base_sha256": self.base.sha256, "base_steps": self.base_steps} if self.base else {}
        return self.checkpoint.provenance() | base

    def batches(self, split: str, seed: int) -> Iterable[dict[str, Tensor]]:
        tensors, names = self.latents.tensors, ADAPTED_TO[self.size]
        if split != HELD_OUT:
            return draw(tensors, names, self.batch, seed)
        size = math.gcd(TRIPLES, self.batch)  # equal parts: their mean is the mean over all triples
        whole = held_out(tensors, names)
        parts = zip(*(tensor.split(size) for tensor in whole.values()), strict=True)
        return [dict(zip(whole, part, strict=True)) for part in parts]

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return noise_loss(model, batch)

    def sampled_loss(
        self, model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """The squared error is the −log p of a Gaussian of variance ½ round the prediction; each element is a label."""
        predicted = predicted_noise(model, batch)
        drawn = torch.randn(predicted.shape, generator=generator, device=predicted.device)
        return F.mse_loss(predicted, predicted.detach() + drawn * 0.5**0.5), drawn.numel()

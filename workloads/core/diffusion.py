"""Denoising diffusion on the photographs' latents: a UNet, Stable Diffusion's noise schedule, batches, a trained base.

Ho et al. 2020, arXiv:2006.11239, algorithm 1.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optimeter.workloads.core.cache import Kept, kept
from optimeter.workloads.core.photographs import DOWN, FILES, latents
from optimeter.workloads.core.pretrained import Checkpoint

UNETS: dict[str, dict[str, Any]] = {
    "tiny": {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 16}
    | {"cross_attention_dim": 32, "attention_head_dim": 4},
    "sd15": {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "norm_num_groups": 32}
    | {"cross_attention_dim": 768, "attention_head_dim": 8},
}
CROPS = {"tiny": (256, 64), "sd15": (32, 16)}  # of each photograph: trained on, held out
TRIPLES = 256
NOISE_LEVELS = 1000
BASE_IS_OF = "china"
BASE_BATCH, BASE_LR = 16, 4e-3
DATA = tuple(file for file, _, _ in FILES.values())
MADE_WITH = ("diffusers", "pillow", "transformers")


def build_unet(size: str, resolution: int) -> Any:
    """The UNet of a size with weights from torch's global generator, on torch's default device."""
    from diffusers import UNet2DConditionModel

    levels = len(UNETS[size]["block_out_channels"])
    return UNet2DConditionModel(
        sample_size=resolution // DOWN,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        **UNETS[size],
    )


def cached_latents(size: str, resolution: int, checkpoint: Checkpoint) -> Kept:
    """`photographs.latents` of a size, made once."""
    pretrained = checkpoint.source != "random"
    return kept(
        latents,
        data=DATA,
        libraries=MADE_WITH,
        vae=size,
        crops=CROPS[size],
        resolution=resolution,
        text_width=UNETS[size]["cross_attention_dim"],
        weights=checkpoint.source,
        repository=checkpoint.repository if pretrained else None,
        revision=checkpoint.commit if pretrained else None,
    )


def noise_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean squared error of the predicted noise, in fp32."""
    return F.mse_loss(predicted_noise(model, batch), batch["noise"].float())


def predicted_noise(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What the model takes for the noise in the noisy latents, (b, 4, h, w), fp32."""
    return model(batch["noisy"], batch["timestep"], encoder_hidden_states=batch["text"]).sample.float()


def signal() -> Tensor:
    """ᾱ, the share of the signal's variance left at each timestep: Stable Diffusion's scaled-linear schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, NOISE_LEVELS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def noised(clean: Tensor, timestep: Tensor, text: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """A batch: clean latents (b, 4, h, w) with noise as of `timestep` (b,), the noise, the text states (b, 77, w)."""
    noise = torch.randn(clean.shape, generator=generator)
    share = signal()[timestep].view(-1, 1, 1, 1)
    return {
        "noisy": share.sqrt() * clean + (1 - share).sqrt() * noise,
        "noise": noise,
        "timestep": timestep,
        "text": text,
    }


def draw(tensors: dict[str, Tensor], names: Iterable[str], batch: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Endless batches of crops that are trained on, at random timesteps."""
    generator = torch.Generator().manual_seed(seed)
    clean, text, photograph = pool(tensors, names, "train")
    while True:
        chosen = torch.randint(len(clean), (batch,), generator=generator)
        timestep = torch.randint(NOISE_LEVELS, (batch,), generator=generator)
        yield noised(clean[chosen], timestep, text[photograph[chosen]], generator)


def held_out(tensors: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The fixed triples: held-out crops in turn, timesteps spread evenly over all of them and shuffled."""
    generator = torch.Generator().manual_seed(0)
    clean, text, photograph = pool(tensors, names, "held_out")
    chosen = torch.arange(TRIPLES) % len(clean)
    timestep = (torch.arange(TRIPLES) * NOISE_LEVELS // TRIPLES)[torch.randperm(TRIPLES, generator=generator)]
    return noised(clean[chosen], timestep, text[photograph[chosen]], generator)


def pool(tensors: dict[str, Tensor], names: Iterable[str], part: str) -> tuple[Tensor, Tensor, Tensor]:
    """(latents of the named photographs, their text states, which of these belongs to each latent)."""
    crops = [tensors[f"{name}_{part}"] for name in names]
    which = torch.cat([torch.full((len(own),), index) for index, own in enumerate(crops)])
    return torch.cat(crops), torch.stack([tensors[f"{name}_text"] for name in names]), which


def cached_base(size: str, resolution: int, steps: int) -> Kept:
    """`trained_base`, made once."""
    return kept(trained_base, data=DATA, libraries=MADE_WITH, size=size, resolution=resolution, steps=steps)


def trained_base(size: str, resolution: int, steps: int) -> dict[str, Tensor]:
    """A UNet's weights after `steps` of AdamW on one photograph, its learning rate falling to 0 along a cosine."""
    tensors = cached_latents(size, resolution, Checkpoint("random", None, None, "", "")).tensors
    torch.manual_seed(0)
    unet = build_unet(size, resolution)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=BASE_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = draw(tensors, [BASE_IS_OF], BASE_BATCH, seed=0)
    for _ in range(steps):
        optimizer.zero_grad()
        noise_loss(unet, next(batches)).backward()
        optimizer.step()
        schedule.step()
    return dict(unet.state_dict())

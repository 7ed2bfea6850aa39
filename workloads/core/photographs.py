"""Scikit-learn's two photographs as latents: crops through a VAE, and a text state for each photograph.

The left part of a photograph is trained on, the right part held out, so that no held-out pixel was ever seen.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from optimeter.workloads.core.pretrained import Checkpoint
from optimeter.workloads.core.workload import packaged

FILES = {  # name → (file, its SHA-256, a caption); by Tomas Bayer and dany13, CC BY
    "china": (
        "sklearn/datasets/images/china.jpg",
        "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
        "a photograph of a Chinese temple on a hill",
    ),
    "flower": (
        "sklearn/datasets/images/flower.jpg",
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
        "a photograph of a dahlia in bloom",
    ),
}
BORDER = 448  # of 640 columns: trained on to the left of it, held out to the right
LARGEST_CROP = 192  # pixels: what fits to the right of the border; a higher resolution is scaled up from it
TEXT_TOKENS = 77
VAES: dict[str, dict[str, Any]] = {
    "tiny": {"block_out_channels": (8, 16, 16, 16), "norm_num_groups": 8, "layers_per_block": 1},
    "sd15": {"block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32, "layers_per_block": 2},
}
DOWN = 8  # pixels a latent, each way


def latents(
    vae: str,
    crops: Sequence[int],
    resolution: int,
    text_width: int,
    weights: str,
    repository: str | None,
    revision: str | None,
) -> dict[str, Tensor]:
    """`<name>_train` and `<name>_held_out`, (crops, 4, resolution/8, resolution/8), and `<name>_text`, (77, width).

    With random weights each channel is standardised over all that is trained on; a checkpoint's latents are scaled as
    its UNet knows them.
    """
    checkpoint = Checkpoint(weights, repository, revision, "model_index.json", "a VAE")
    encoder = _encoder(vae, checkpoint)
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name in FILES:
        picture = load(name)
        for part, count, columns in zip(
            ("train", "held_out"), crops, (slice(BORDER), slice(BORDER, None)), strict=True
        ):
            cut = cut_out(picture[:, :, columns], count, resolution, generator)
            with torch.no_grad():
                made[f"{name}_{part}"] = torch.cat([encoder.encode(one).latent_dist.mean for one in cut.split(8)])
    if weights == "random":
        made = standardised(made)
        return made | {f"{name}_text": torch.randn(TEXT_TOKENS, text_width, generator=generator) for name in FILES}
    made = {name: tensor * encoder.config.scaling_factor for name, tensor in made.items()}
    return made | _text_states(checkpoint)


def load(name: str) -> Tensor:
    """A photograph, (3, 427, 640), in [-1, 1]."""
    import numpy as np
    from PIL import Image

    file, sha256, _ = FILES[name]
    with Image.open(packaged(file, sha256)) as image:
        pixels = np.asarray(image.convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def cut_out(picture: Tensor, count: int, resolution: int, generator: torch.Generator) -> Tensor:
    """`count` squares of a picture (3, h, w), (count, 3, resolution, resolution)."""
    side = min(resolution, LARGEST_CROP)
    top, left = (
        torch.randint(extent - side + 1, (count,), generator=generator).tolist() for extent in picture.shape[1:]
    )
    squares = torch.stack([picture[:, y : y + side, x : x + side] for y, x in zip(top, left, strict=True)])
    if side == resolution:
        return squares
    return F.interpolate(squares, size=resolution, mode="bicubic", antialias=True).clamp(-1, 1)


def standardised(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean 0 and variance 1 of each channel over what is trained on."""
    seen = torch.cat([tensor for name, tensor in tensors.items() if name.endswith("_train")])
    deviation, mean = torch.std_mean(seen, dim=(0, 2, 3), keepdim=True)
    return {name: (tensor - mean) / deviation for name, tensor in tensors.items()}


def _encoder(vae: str, checkpoint: Checkpoint) -> Any:
    """The VAE: of the checkpoint, or with weights drawn from a fixed seed."""
    from diffusers import AutoencoderKL

    if checkpoint.source != "random":
        return checkpoint.load(AutoencoderKL, subfolder="vae", torch_dtype=torch.float32)
    blocks = len(VAES[vae]["block_out_channels"])
    down, up = ("DownEncoderBlock2D",) * blocks, ("UpDecoderBlock2D",) * blocks
    torch.manual_seed(0)
    encoder: Any = AutoencoderKL(down_block_types=down, up_block_types=up, latent_channels=4, **VAES[vae])
    return encoder.eval()


def _text_states(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Each photograph's caption as the checkpoint's own encoder sees it."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = checkpoint.load(CLIPTokenizer, subfolder="tokenizer")
    encoder = checkpoint.load(CLIPTextModel, subfolder="text_encoder", dtype=torch.float32)
    states = {}
    for name, (_, _, caption) in FILES.items():
        words = tokenizer(caption, padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt")
        with torch.no_grad():
            states[f"{name}_text"] = encoder(words.input_ids).last_hidden_state[0]
    return states

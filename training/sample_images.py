"""Generates a sheet of images with a run's current weights: `python -m training.sample_images out.png --run dev`."""

import argparse
from pathlib import Path

import torch

from training import text_encoders
from training.attention import use_plain_attention
from training.batches import load_vae
from training.drawings.contact_sheet import sheet
from training.flow_matching import sample
from training.image_tensors import to_image
from training.latents import decode
from training.tokenizers import TEXT_TOKENS
from training.transformer import load

PROMPTS = (
    "a red sketch of a star", "a blue house", "a green tree", "a sketch of a cat", "an orange sun", "a purple heart",
    "a fish drawn in blue ink", "a brown mug", "a pink balloon", "a key in black pen", "a red apple on cream paper",
    "a bicycle in green", "a blue sketch of a house and a tree", "a red sketch of a sailboat under a sun",
    "the word hello handwritten in blue ink", "the word zoo in red handwriting",
)  # fmt: skip


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--run", default="transformer", choices=["transformer", "dev", "schnell"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--columns", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=len(PROMPTS))
    arguments = parser.parse_args()
    model = load(arguments.runs / arguments.run, guided=arguments.run == "dev")
    use_plain_attention(model)
    vae, encoders = load_vae(arguments.runs / "autoencoder" / "vae"), text_encoders.load(arguments.runs / "text")
    prompts, grid = list(PROMPTS[: arguments.count]), (arguments.rows, arguments.columns)
    text, empty = encoders(prompts, TEXT_TOKENS), encoders([""] * len(prompts), TEXT_TOKENS)
    guidance = 1.0 if arguments.run == "schnell" else arguments.guidance
    factor = 1.0 if arguments.run == "schnell" else None
    latents = sample(
        model, text, empty, grid, steps=arguments.steps, guidance=guidance, seed=arguments.seed, shift_factor=factor
    )
    images = [to_image(decode(vae, one[None], grid)[0]) for one in latents]
    sheet(list(zip(images, prompts, strict=True)), columns=8).save(arguments.out)


if __name__ == "__main__":
    main()

"""The two text encoders, T5 and CLIP, with their tokenizers."""

from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from test_checkpoints.tokenizers import CLIP_TOKENS
from training.tokenizers import TEXT_TOKENS, clip_tokenizer, t5_tokenizer

WIDTH = 128


def t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=WIDTH,
        d_kv=32,
        d_ff=2 * WIDTH,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
    )
    return T5EncoderModel(config)


def clip() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(clip_tokenizer()),
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,  # FLUX's published value: transformers then pools at the highest id of a prompt.
    )
    return CLIPTextModel(config)


class Encoders(nn.Module):
    """T5 and CLIP with their tokenizers. Maps prompts to the text inputs of a FLUX transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.t5, self.clip = t5(), clip()
        self.t5_tokenizer, self.clip_tokenizer = t5_tokenizer(), clip_tokenizer()

    def forward(self, prompts: list[str], max_sequence_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns prompt embeds `[batch, max_sequence_length, width]` and pooled prompt embeds `[batch, width]`.
        Like FLUX, T5 gets no attention mask for its padding."""
        ids = self.t5_tokenizer(
            prompts, padding="max_length", max_length=max_sequence_length, truncation=True, return_tensors="pt"
        ).input_ids
        # CLIP's attention is causal, so padding after the end of a prompt has no effect.
        clip_tokens = self.clip_tokenizer(
            prompts, padding="longest", max_length=CLIP_TOKENS, truncation=True, return_tensors="pt"
        )
        device = self.t5.device
        return self.t5(ids.to(device))[0], self.clip(clip_tokens.input_ids.to(device)).pooler_output

    def longest(self, prompts: list[str]) -> int:
        """Returns the token count of the longest prompt, including the end token."""
        return min(TEXT_TOKENS, max(len(ids) for ids in self.t5_tokenizer(prompts).input_ids))


def load(folder: Path) -> Encoders:
    """Returns the trained encoders, frozen."""
    encoders = Encoders()
    encoders.load_state_dict(torch.load(folder / "encoders.pt", weights_only=True))
    return encoders.requires_grad_(False).eval()

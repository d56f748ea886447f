"""A small untrained autoencoder with the strides of the trained one."""

import torch
from diffusers import AutoencoderKL

from training.group_norms import use_weighted_norms


def fresh_autoencoder() -> AutoencoderKL:
    """Returns an autoencoder with a stride of 16 pixels."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 5,
        up_block_types=["UpDecoderBlock2D"] * 5,
        block_out_channels=[4] * 5,
        norm_num_groups=2,
        latent_channels=16,
        shift_factor=0.5,
        scaling_factor=2.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    use_weighted_norms(vae)
    return vae

"""Tells from the names of tensors for which other model a file was made. Pure: a table of what models call layers."""

import re
from collections.abc import Iterable

FAMILIES = tuple(
    (re.compile(pattern), family)
    for pattern, family in (
        (r"lora_te2_text_model|text_encoder_2\.text_model|add_embedding|label_emb", "Stable Diffusion XL"),
        (r"(^|[._])(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)[._]", "Stable Diffusion"),
        (r"(^|[._])joint_blocks[._]", "Stable Diffusion 3"),
        (r"(double|single)_stream_modulation|attn[._]to_qkv_mlp_proj", "FLUX.2"),
        (r"(^|[._])blocks[._]\d+[._](self_attn|cross_attn|ffn)[._]", "Wan"),
        (r"\.(img|txt)_attn_qkv|(img|txt)_mlp[._]fc\d|individual_token_refiner", "Hunyuan Video"),
        (r"(img|txt)_mlp[._]net[._]|(img|txt)_mod[._]1([._]|$)", "Qwen-Image"),
        (r"(double|single)_stream_blocks[._]", "HiDream"),
        (r"(^|[._])layers[._]\d+[._](attention|feed_forward|adaLN_modulation)[._]", "Lumina or Z-Image"),
        (r"(^|[._])distilled_guidance_layer[._]", "Chroma"),
    )
)


def family(names: Iterable[str]) -> str | None:
    """The model that calls its layers as `names` do, or None where no table knows them; the surest sign decides."""
    listed = tuple(names)
    return next((found for pattern, found in FAMILIES if any(pattern.search(name) for name in listed)), None)

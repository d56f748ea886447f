"""Recognizes LoRA files for other base models and of other methods by the names of their tensors."""

import re
from collections.abc import Iterable, Sequence

_OTHER_BASE_MODELS = tuple(
    (re.compile(pattern), model)
    for pattern, model in (
        (r"lora_te2_text_model|text_encoder_2\.text_model|add_embedding|label_emb", "Stable Diffusion XL"),
        (r"unet_(input|output|middle)_block", "Stable Diffusion XL"),
        (r"(down_blocks|up_blocks|mid_block)[._].*transformer_blocks[._][1-9]", "Stable Diffusion XL"),
        (
            r"(^|[._])(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)[._]",
            "Stable Diffusion 1.5 or 2",
        ),
        (r"(^|[._])joint_blocks[._]", "Stable Diffusion 3 or 3.5"),
        (r"(^|[._])transformer_blocks[._]\d+[._]attn2[._]to_", "Stable Diffusion 3.5, or for a video model"),
        (r"(double|single)_stream_modulation|attn[._]to_qkv_mlp_proj|(ff|ff_context)[._]linear_(in|out)", "FLUX.2"),
        (r"(^|[._])(?<!transformer_)blocks[._]\d+[._](self_attn|cross_attn|ffn|attn[12])[._]", "Wan"),
        (r"\.(img|txt)_attn_qkv|(img|txt)_attn_[qkv]\.|(img|txt)_mlp[._]fc\d|token_refiner", "Hunyuan Video"),
        (r"(img|txt)_mlp[._]net[._]|(img|txt)_mod[._]1([._]|$)", "Qwen-Image"),
        (r"(^|[._])(?<!single_)transformer_blocks[._][45]\d[._]attn[._]", "Qwen-Image"),
        (r"(double|single)_stream_blocks[._]", "HiDream"),
        (r"(^|[._])layers[._]\d+[._](self_attention|mlp[._](gate_proj|up_proj|linear_fc2))([._]|$)", "Ernie-Image"),
        (r"(^|[._])(noise|context)_refiner[._]", "Z-Image or Lumina"),
        (r"(^|[._])layers[._]\d+[._](attention|feed_forward|adaLN_modulation)[._]", "Z-Image or Lumina"),
        (r"(^|[._])distilled_guidance_layer[._]", "Chroma"),
    )
)
_WIDTHS = {
    1536: "Stable Diffusion 3 or 3.5 Medium",
    2432: "Stable Diffusion 3.5 Large",
    3072: "FLUX.1",
    4096: "FLUX.2 klein 9B",
    6144: "FLUX.2 dev",
}
"""Widths of transformers whose layers have the same names as those of FLUX.1."""
_WIDER_IN_FLUX_2 = {"ff.net.0.proj": 6, "ff_context.net.0.proj": 6, "linear1": 9}
"""Outputs divided by inputs. FLUX.2's MLPs have a gate."""

_OTHER_METHODS = tuple(
    (re.compile(pattern), method)
    for pattern, method in (
        (r"\.(dora_scale|(lora_)?magnitude_vector)\b", "DoRA, which rescales the weights of the model"),
        (r"\.boft_[RsP]\b", "BOFT, which rotates the weights of the model"),
        (r"\.oft_(blocks|diag|[rR])\b|^oft_unet_", "OFT, which rotates the weights of the model"),
        (r"\.([ab][12]|bm[12])(\.weight)?$", "GLoRA, which rescales the weights of the model"),
        (r"\.(ia3_l|on_input)\b", "IA3, which rescales the outputs of layers"),
        (r"\.hada_t[12]$", "LoHa for convolutions"),
        (r"\.lokr_t2$", "LoKr for convolutions"),
        (r"\.lora_mid\.weight$", "LoCon for convolutions"),
        (r"\.vera_lambda_[bd]\b", "VeRA"),
        (r"\.fourierft_spectrum\b", "FourierFT"),
        (r"\.hra_u\b", "HRA"),
        (r"\.(bone|miss)_block\b", "MiSS or Bone"),
    )
)


def detect_base_model(names: Iterable[str]) -> str | None:
    """The base model, other than FLUX.1, that these tensor names belong to."""
    return _first_match(_OTHER_BASE_MODELS, tuple(names))


def base_model_of_shape(layer: str, outputs: int, inputs: int) -> str | None:
    """The base model whose `layer` has this shape, if its layers have the names of those of FLUX.1.

    `layer` is the name in diffusers, or `linear1` for the fused layer of a single block.
    """
    if any(layer.endswith(name) and outputs == factor * inputs for name, factor in _WIDER_IN_FLUX_2.items()):
        return "FLUX.2"
    if "blocks." not in layer or layer.endswith((".net.2", ".proj_out")):
        return None
    return _WIDTHS.get(inputs)


def detect_method(name: str) -> str | None:
    """The method that a tensor belongs to, if it is not a sum of the weight and a low-rank or Kronecker product."""
    return _first_match(_OTHER_METHODS, (name,))


def _first_match(table: Iterable[tuple[re.Pattern[str], str]], names: Sequence[str]) -> str | None:
    """The label of the first pattern of `table` that is found in one of `names`."""
    return next((label for pattern, label in table if any(map(pattern.search, names))), None)

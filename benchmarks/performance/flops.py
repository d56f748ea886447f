"""Floating-point operations of FLUX.1's transformer."""

WIDTH, DOUBLE_BLOCKS, SINGLE_BLOCKS = 3072, 19, 38
_CHANNELS, _TEXT_WIDTH, _POOLED_WIDTH, _FREQUENCIES = 64, 4096, 768, 256
_PIXELS_PER_TOKEN = 16 * 16


def image_tokens(size: str) -> int:
    """The number of tokens of an image of a size such as `1024x768`."""
    width, _, height = size.partition("x")
    return int(width) * int(height) // _PIXELS_PER_TOKEN


def flops_per_step(image: int, text: int) -> int:
    """The operations for one image with `image` and `text` tokens; a multiply-add counts as two.

    Equals `geometry.flops_per_pass`.
    """
    blocks, tokens = DOUBLE_BLOCKS + SINGLE_BLOCKS, image + text
    modulation = (12 * DOUBLE_BLOCKS + 3 * SINGLE_BLOCKS + 2) * WIDTH**2
    embedders = 2 * (_FREQUENCIES + WIDTH) * WIDTH + (_POOLED_WIDTH + WIDTH) * WIDTH
    linears = blocks * 12 * WIDTH**2 * tokens + 2 * _CHANNELS * WIDTH * image + _TEXT_WIDTH * WIDTH * text
    attention = blocks * 2 * tokens**2 * WIDTH
    return 2 * (modulation + embedders + linears + attention)

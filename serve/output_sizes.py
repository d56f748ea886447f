"""Output sizes by aspect ratio and megapixels, from Replicate's API, and limits of custom sizes and input images."""

from serve.model_specs import Size

SIZES: dict[str, dict[str, Size]] = {
    "1": {
        "1:1": (1024, 1024),
        "16:9": (1344, 768),
        "21:9": (1536, 640),
        "3:2": (1216, 832),
        "2:3": (832, 1216),
        "4:5": (896, 1088),
        "5:4": (1088, 896),
        "3:4": (896, 1152),
        "4:3": (1152, 896),
        "9:16": (768, 1344),
        "9:21": (640, 1536),
    },
    "0.25": {
        "1:1": (512, 512),
        "16:9": (672, 384),
        "21:9": (768, 320),
        "3:2": (608, 416),
        "2:3": (416, 608),
        "4:5": (448, 544),
        "5:4": (544, 448),
        "3:4": (448, 576),
        "4:3": (576, 448),
        "9:16": (384, 672),
        "9:21": (320, 768),
    },
}
"""megapixels -> aspect_ratio -> size, near the pixel count that the model was trained on."""

SIZE_MULTIPLE = 16
"""Custom sizes and input images are rounded to multiples of this. A checkpoint's own stride may be larger."""

CUSTOM_SIDE_MIN = 256
CUSTOM_SIDE_MAX = 1440
IMAGE_SIDE_MIN = 64
IMAGE_SIDE_MAX = 1440
IMAGE_RATIO_MAX = 8.0


def nearest_multiple(side: float, multiple: int = SIZE_MULTIPLE) -> int:
    """The multiple nearest to `side`, rounding half up, at least `multiple`."""
    return max(multiple, int((side + multiple / 2) // multiple) * multiple)

"""Settings of OpenAI's Images API."""

from serve.settings.base import StrictModel

_MODELS = (
    "gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "gpt-image-2", "gpt-image-2-2026-04-21",
    "gpt-image-2.5-sunburst", "gpt-image-2.5-sunburst-2026-09-08", "gpt-image-2.5-flare",
    "gpt-image-2.5-flare-2026-09-08", "gpt-image-2.6-sunburst", "gpt-image-2.6-flare", "chatgpt-image-latest",
    "dall-e-2", "dall-e-3",
)  # fmt: skip
"""The models that the official clients know."""


class OpenAiSettings(StrictModel):
    """OpenAI's Images API."""

    model_aliases: dict[str, str | None] = dict.fromkeys(_MODELS)
    """Names that callers may use, each with the `owner/name` of a served model; null means the first served model."""

"""OpenAI's Images API: generations and edits by the served models."""

from serve.api.openai.images import routes

__all__ = ["routes"]

"""Builds the objects of served models and deployments: Replicate's, and OpenAI's for models."""

from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve.api.openapi import COG_VERSION, openapi_document
from serve.errors import NotPermitted
from serve.predictions.prediction import rfc3339
from serve.settings import ServedModel, Settings

ACCOUNT = {"type": "organization", "username": "flux-serve", "name": "flux-serve", "github_url": None}
"""The service has no accounts; clients read this object to check their token."""


def model_json(model: ServedModel, settings: Settings, created_at: datetime) -> dict[str, Any]:
    """Every field that Replicate's clients require; there are no web pages, licences or counts of runs."""
    return {
        "url": f"{settings.outputs.base_url}/v1/models/{model.full_name}",
        "owner": model.owner,
        "name": model.name,
        "description": model.description,
        "visibility": "public",
        "is_official": False,
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "run_count": 0,
        "cover_image_url": None,
        "default_example": None,
        "latest_version": version_json(model, model.versions[0], created_at),
    }


def version_json(model: ServedModel, version: str, created_at: datetime) -> dict[str, Any]:
    return {
        "id": version,
        "created_at": rfc3339(created_at),
        "cog_version": COG_VERSION,
        "openapi_schema": openapi_document(model),
    }


def openai_model_json(model: ServedModel, created_at: datetime) -> dict[str, Any]:
    """The model object of OpenAI's API."""
    return {
        "id": model.full_name,
        "object": "model",
        "created": int(created_at.timestamp()),
        "owned_by": model.owner,
    }


def find_models(settings: Settings, query: str) -> list[ServedModel]:
    """The served models whose name and description contain all words of `query`."""
    return [each for each in settings.served_models if contains_words(f"{each.full_name} {each.description}", query)]


def contains_words(text: str, query: str) -> bool:
    return all(word in text.casefold() for word in query.casefold().split())


async def refuse_change(request: Request) -> Response:
    """The endpoint of every change that the API does not allow. Raises `NotPermitted`."""
    raise NotPermitted("models and deployments are in the operator's settings, and cannot be changed through the API")

"""Which of the served models a caller means. Pure; knows only the table in the settings."""

from typing import NamedTuple

from serve.errors import NotFound, UnknownVersion
from serve.settings import ServedModel, Settings


class ServedVersion(NamedTuple):
    model: ServedModel
    version: str


def served_version(settings: Settings, reference: str | None) -> ServedVersion:
    """The model for a version id, `owner/name` or `owner/name:id`; the first row for None.

    Raises `UnknownVersion`.
    """
    if reference is None:
        return _newest(settings.served_models[0])
    for model in settings.served_models:
        if reference == model.full_name:
            return _newest(model)
        version = reference.removeprefix(f"{model.full_name}:")
        if version in model.versions:
            return ServedVersion(model, version)
    raise UnknownVersion(reference)


def served_model(settings: Settings, owner: str, name: str) -> ServedVersion:
    """The model with a name, as it stands in a path. Raises `NotFound`."""
    for model in settings.served_models:
        if (owner, name) == (model.owner, model.name):
            return _newest(model)
    raise NotFound(f"no model {f'{owner}/{name}'[:100]!r} is served here")


def _newest(model: ServedModel) -> ServedVersion:
    return ServedVersion(model, model.versions[0])

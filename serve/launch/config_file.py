"""Reads and validates a Ray Serve config file.

Unknown keys are errors here; Ray Serve itself ignores them.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import DeploymentSchema, ServeDeploySchema

from serve.lora.parse_reference import check_aliases
from serve.predictions.request import check_served_models
from serve.settings import Settings

IMPORT_PATH = "serve.deployment:build"


class ConfigError(Exception):
    """The config file or a setting is invalid. The message has one line for each error."""


def embedded_config() -> dict[str, Any]:
    """The config used without a file: the embedded models on this machine's CPU."""
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": 8000},
        "applications": [{"name": "flux", "route_prefix": "/", "import_path": IMPORT_PATH, "args": {}}],
    }


def read_config(path: Path) -> dict[str, Any]:
    """Reads the YAML mapping in a file. Raises `ConfigError`."""
    try:
        config = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: should be a YAML mapping")
    return config


def apply_settings(config: Mapping[str, Any], assignments: Mapping[str, str]) -> dict[str, Any]:
    """A copy of `config` with settings replaced. `assignments` maps dotted names to values in YAML."""
    application = _only_application(config)
    defaults = Settings().model_dump(mode="json")
    args = application.get("args") or {}
    for dotted, value in assignments.items():
        key = dotted.partition(".")[0]
        # If the file has no `pools`, setting a key of one pool must keep the other default pools.
        default = {key: defaults[key]} if key in defaults else {}
        args = _override({**default, **args}, dotted, value)
    return {**config, "applications": [{**application, "args": args}]}


def parse_assignments(texts: Iterable[str]) -> dict[str, str]:
    """The assignments of `--set`. Raises `ConfigError`."""
    assignments = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ConfigError(f"--set {text}: should be KEY=VALUE")
        assignments[key] = value
    return assignments


def _override(tree: Mapping[str, Any], dotted: str, value: str) -> dict[str, Any]:
    """A copy of `tree` with the entry at a dotted name replaced by `value`, which is parsed as YAML."""
    key, _, rest = dotted.partition(".")
    nested = tree.get(key)
    new = _override(nested if isinstance(nested, Mapping) else {}, rest, value) if rest else yaml.safe_load(value)
    return {**tree, key: new}


def validate_config(config: Mapping[str, Any]) -> tuple[ServeDeploySchema, Settings]:
    """Parses the config into Serve's schema and the settings. Raises `ConfigError`, which lists the errors."""
    application = _only_application(config)
    errors = list(_unknown_keys(config, ServeDeploySchema, ""))
    try:
        schema = ServeDeploySchema.model_validate(config)
        settings = Settings.model_validate(application.get("args") or {})
    except ValidationError as error:
        raise ConfigError("\n".join([*errors, *_messages(error)])) from error
    if application.get("import_path") != IMPORT_PATH:
        errors.append(f"applications.0.import_path: should be {IMPORT_PATH}")
    try:
        check_aliases(settings.lora)
        check_served_models(settings)
    except ValueError as error:
        errors.append(str(error))
    deployment_names = {"ingress", *settings.pools}
    errors += [
        f"applications.0.deployments: no pool is named {deployment['name']!r}"
        for deployment in application.get("deployments") or ()
        if deployment.get("name") not in deployment_names
    ]
    if errors:
        raise ConfigError("\n".join(errors))
    return schema, settings


def _only_application(config: Mapping[str, Any]) -> Mapping[str, Any]:
    applications = config.get("applications")
    if not isinstance(applications, list) or len(applications) != 1 or not isinstance(applications[0], dict):
        raise ConfigError("applications: should have exactly one application")
    return applications[0]


def _unknown_keys(tree: object, model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yields an error for each key in `tree`, at any depth, that `model` and its nested models do not have."""
    if not isinstance(tree, Mapping):
        return
    fields = {field.alias or name: name for name, field in model.model_fields.items()}
    for key, value in tree.items():
        if key not in fields:
            yield f"{prefix}{key}: unknown key"
            continue
        nested = _nested_model(model, fields[key])
        if nested is None:
            continue
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from _unknown_keys(item, nested, f"{prefix}{key}.{index}.")
        else:
            yield from _unknown_keys(value, nested, f"{prefix}{key}.")


def _nested_model(model: type[BaseModel], field: str) -> type[BaseModel] | None:
    """The pydantic model in a field's annotation, also inside a list or a union; None if there is none."""
    if (model, field) == (DeploymentSchema, "autoscaling_config"):
        return cast(type[BaseModel], AutoscalingConfig)
    pending = [model.model_fields[field].annotation]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        pending += get_args(annotation)
    return None


def _messages(error: ValidationError) -> list[str]:
    return [f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors()]

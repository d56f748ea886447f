"""Reads and checks a Ray Serve config file.

Unknown keys are errors here; Ray Serve itself ignores them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import DeploymentSchema, ServeDeploySchema

from serve.lora.parse import check_aliases
from serve.settings import Settings, override

IMPORT_PATH = "serve.deployment:build"


class ConfigError(Exception):
    """The file, or what was set on top of it, is no valid configuration; one line a fault."""


def embedded_config() -> dict[str, Any]:
    """The configuration of the service without any file: tiny models on this machine's CPU."""
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": 8000},
        "applications": [{"name": "flux", "route_prefix": "/", "import_path": IMPORT_PATH, "args": {}}],
    }


def read_config(path: Path) -> dict[str, Any]:
    """The tree in a YAML file. Raises `ConfigFault`."""
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: not a mapping")
    return tree


def apply_settings(config: Mapping[str, Any], assignments: Mapping[str, str]) -> dict[str, Any]:
    """`config` with settings of its application replaced: dotted name -> value as YAML text."""
    application = _only_application(config)
    defaults = Settings().model_dump(mode="json")
    args = application.get("args") or {}
    for dotted, value in assignments.items():
        top = dotted.partition(".")[0]
        # Where the file has no `pools` at all, setting a key of one must not drop the others.
        beneath = {top: defaults[top]} if top in defaults else {}
        args = override({**beneath, **args}, dotted, value)
    return {**config, "applications": [{**application, "args": args}]}


def validate_config(config: Mapping[str, Any]) -> tuple[ServeDeploySchema, Settings]:
    """The configuration as Serve's schema and our settings. Raises `ConfigFault` naming every fault."""
    application = _only_application(config)
    faults = list(_unknown_keys(config, ServeDeploySchema, ""))
    try:
        schema = ServeDeploySchema.model_validate(config)
        settings = Settings.model_validate(application.get("args") or {})
    except ValidationError as error:
        raise ConfigError("\n".join([*faults, *_lines(error)])) from error
    if application.get("import_path") != IMPORT_PATH:
        faults.append(f"applications.0.import_path: should be {IMPORT_PATH}")
    try:
        check_aliases(settings.lora)
    except ValueError as fault:
        faults.append(str(fault))
    known = {"ingress", *settings.pools}
    faults += [
        f"applications.0.deployments: there is no pool {row['name']!r}"
        for row in application.get("deployments") or ()
        if row.get("name") not in known
    ]
    if faults:
        raise ConfigError("\n".join(faults))
    return schema, settings


def _only_application(config: Mapping[str, Any]) -> Mapping[str, Any]:
    applications = config.get("applications")
    if not isinstance(applications, list) or len(applications) != 1 or not isinstance(applications[0], dict):
        raise ConfigError("applications: one application is needed")
    return applications[0]


def _unknown_keys(tree: object, model: type[BaseModel], where: str) -> Iterator[str]:
    """A line for each key below `tree` that `model` and the models in its fields do not have."""
    if not isinstance(tree, Mapping):
        return
    names = {field.alias or name: name for name, field in model.model_fields.items()}
    for key, value in tree.items():
        if key not in names:
            yield f"{where}{key}: unknown key"
            continue
        below = _model_in(model, names[key])
        if below is None:
            continue
        if isinstance(value, list):
            for index, entry in enumerate(value):
                yield from _unknown_keys(entry, below, f"{where}{key}.{index}.")
        else:
            yield from _unknown_keys(value, below, f"{where}{key}.")


def _model_in(model: type[BaseModel], field: str) -> type[BaseModel] | None:
    """The model that a field's type holds: itself, in a list, or beside None."""
    if (model, field) == (DeploymentSchema, "autoscaling_config"):
        return cast(type[BaseModel], AutoscalingConfig)
    pending = [model.model_fields[field].annotation]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        pending += get_args(annotation)
    return None


def _lines(error: ValidationError) -> list[str]:
    return [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()]

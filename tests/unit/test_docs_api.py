"""The tables in docs/api.md match the code."""

import ast
import json
import re
from typing import Any, cast

from starlette.routing import Route

from serve import errors
from serve.api import (
    cog,
    deployments,
    discovery,
    files,
    models,
    openai,
    output_files,
    playground,
    probes,
    replicate,
    webhooks,
)
from serve.api.builtin_errors import BUILTIN_ERRORS
from serve.inputs import Inputs
from serve.settings import CogSettings, Settings
from tests.markdown import ROOT, table_with, tables

API = (ROOT / "docs" / "api.md").read_text()
UNUSED = cast(Any, None)
HTTP_METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "QUERY"}


def test_inputs_table_matches_the_schema() -> None:
    assert table_with(API, "`prompt`") == [
        expected_row(name, field) for name, field in inputs_schema()["properties"].items()
    ]


def inputs_schema() -> dict[str, Any]:
    return Inputs.model_json_schema()


def expected_row(name: str, field: dict[str, Any]) -> list[str]:
    """The cells of an input: name, type, default (or "required"), allowed values and description."""
    schema = next((option for option in field.get("anyOf", ()) if option["type"] != "null"), field)
    minimum, maximum = schema.get("minimum", schema.get("ge")), schema.get("maximum", schema.get("le"))
    bounds = "" if minimum is None else f"{minimum:g} to {maximum:g}"
    allowed = ", ".join(f"`{value}`" for value in schema["enum"]) if "enum" in schema else bounds
    default = field.get("default")
    default_text = "" if default is None else f"`{json.dumps(default).strip(chr(34)).removesuffix('.0')}`"
    required_or_default = "required" if name in inputs_schema()["required"] else default_text
    type_name = schema["type"] + (" (URI)" if schema.get("format") == "uri" else "")
    return [f"`{name}`", type_name, required_or_default, allowed, field["description"]]


def test_path_tables_match_the_routes() -> None:
    settings = Settings(cog=CogSettings(shutdown=True))
    routes: list[Route] = [
        *replicate.routes(UNUSED, UNUSED, UNUSED, settings),
        *files.routes(UNUSED, UNUSED, UNUSED, settings),
        *models.routes(UNUSED, settings),
        *openai.routes(UNUSED, UNUSED, settings),
        *deployments.routes(UNUSED, settings),
        *discovery.routes(UNUSED, settings),
        *playground.routes(settings),
        *cog.routes(UNUSED, UNUSED, settings, UNUSED),
        *webhooks.routes(UNUSED),
        *probes.routes(UNUSED),
        *output_files.routes(UNUSED, UNUSED, UNUSED, UNUSED, settings),
    ]
    documented = {(row[0], row[1].strip("`")) for table in tables(API) for row in table if row[0] in HTTP_METHODS}
    served = {(method, route.path) for route in routes for method in route.methods or () if method != "HEAD"}
    assert documented == served


def test_errors_table_matches_the_error_classes() -> None:
    statuses = {error.__name__: error.status for error in all_subclasses(errors.ServiceError)}
    documented = {row[0].strip("`"): int(row[1]) for row in table_with(API, f"`{errors.NotFound.__name__}`")}
    failure_names = {error.__name__ for error in all_subclasses(errors.PredictionFailed)} | {"PredictionFailed"}
    assert documented == {name: status for name, status in statuses.items() if name not in failure_names}
    assert not [name for name in failure_names - {"PredictionFailed"} if f"`{name}`" not in API]


def all_subclasses(error: type[errors.ServiceError]) -> set[type[errors.ServiceError]]:
    direct = {subclass for subclass in error.__subclasses__() if subclass.__module__.startswith("serve.errors.")}
    return direct.union(*(all_subclasses(subclass) for subclass in direct))


def public_methods(file: str, name: str) -> set[str]:
    """The methods of a class that Ray can call, with their arguments."""
    tree = ast.parse((ROOT / file).read_text())
    (definition,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return {
        f"{node.name}({', '.join(argument.arg for argument in node.args.args[1:])})"
        for node in definition.body
        if isinstance(node, ast.AsyncFunctionDef) and not node.name.startswith("_")
    }


def test_handle_table_matches_the_methods_of_the_ingress() -> None:
    public = public_methods("serve/ingress.py", "Ingress") | public_methods("serve/handle_api.py", "HandleApi")
    rows = table_with(API, "`wait_until_open()`")
    documented = {row[0].strip("`").replace("=None", "").replace("=()", "") for row in rows}
    assert documented == public


def test_handle_errors_match_the_table_of_built_in_errors() -> None:
    documented = {
        name: row[0].strip("`") for row in table_with(API, "`LookupError`") for name in re.findall(r"`(\w+)`", row[1])
    }
    expected = {error.__name__: builtin.__name__ for error, builtin in BUILTIN_ERRORS.items()}
    del expected["ServiceError"]
    assert documented.items() >= expected.items()

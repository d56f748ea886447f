"""The tables of docs/api.md match the code."""

import ast
import json
from typing import Any, cast

from starlette.routing import Route

from serve import errors
from serve.api import cog, output_files, replicate
from serve.inputs import Inputs
from serve.settings import Settings
from tests.markdown import ROOT, table_with, tables

API = ROOT / "docs" / "api.md"
UNUSED = cast(Any, None)
METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE"}


def test_inputs_table_matches_the_schema() -> None:
    assert table_with(API, "`prompt`") == [_row(name, field) for name, field in _schema()["properties"].items()]


def _schema() -> dict[str, Any]:
    return Inputs.model_json_schema()


def _row(name: str, field: dict[str, Any]) -> list[str]:
    """Name, type, default, allowed values and description."""
    schema = next((each for each in field.get("anyOf", ()) if each["type"] != "null"), field)
    minimum, maximum = schema.get("minimum", schema.get("ge")), schema.get("maximum", schema.get("le"))
    bounds = "" if minimum is None else f"{minimum:g} to {maximum:g}"
    allowed = ", ".join(f"`{value}`" for value in schema["enum"]) if "enum" in schema else bounds
    default = field.get("default")
    shown_default = "" if default is None else f"`{json.dumps(default).strip(chr(34)).removesuffix('.0')}`"
    required = "required" if name in _schema()["required"] else shown_default
    type_name = schema["type"] + (" (URI)" if schema.get("format") == "uri" else "")
    return [f"`{name}`", type_name, required, allowed, field["description"]]


def test_path_tables_match_the_routes() -> None:
    settings = Settings()
    routes: list[Route] = [
        *replicate.routes(UNUSED, UNUSED, settings),
        *cog.routes(UNUSED, UNUSED, settings),
        *output_files.routes(UNUSED, settings),
    ]
    documented = {(row[0], row[1].strip("`")) for table in tables(API) for row in table if row[0] in METHODS}
    served = {(method, route.path) for route in routes for method in route.methods or () if method != "HEAD"}
    assert documented == served


def test_errors_table_matches_the_error_classes() -> None:
    statuses = {error.__name__: error.status for error in _subclasses(errors.ServiceError)}
    table = {row[0].strip("`"): int(row[1]) for row in table_with(API, f"`{errors.NotFound.__name__}`")}
    failures = {error.__name__ for error in _subclasses(errors.PredictionFailed)} | {"PredictionFailed"}
    assert table == {name: status for name, status in statuses.items() if name not in failures}
    text = API.read_text()
    assert not [name for name in failures - {"PredictionFailed"} if f"`{name}`" not in text]


def _subclasses(error: type[errors.ServiceError]) -> set[type[errors.ServiceError]]:
    direct = {subclass for subclass in error.__subclasses__() if subclass.__module__ == "serve.errors"}
    return direct.union(*(_subclasses(subclass) for subclass in direct))


def test_handle_table_matches_the_methods_of_the_ingress() -> None:
    tree = ast.parse((ROOT / "serve/ingress.py").read_text())
    (ingress,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Ingress")
    public = {
        f"{node.name}({', '.join(argument.arg for argument in node.args.args[1:])})"
        for node in ingress.body
        if isinstance(node, ast.AsyncFunctionDef) and not node.name.startswith("_")
    }
    documented = {row[0].strip("`").replace("=None", "") for row in table_with(API, "`wait_until_open()`")}
    assert documented == public

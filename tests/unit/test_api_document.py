"""docs/api.md is the API: its tables are compared with the code that they tell of."""

import ast
import json
from typing import Any, cast

from starlette.routing import Route

from serve import errors
from serve.api import cog, output_files, replicate
from serve.inputs import Inputs
from serve.settings import Settings
from tests.markdown import ROOT, rows

API = ROOT / "docs" / "api.md"
NOTHING = cast(Any, None)


def test_the_table_of_inputs_is_the_one_that_is_checked() -> None:
    assert rows(API, "| input | type | default | allowed | what it does |") == [
        _row(name, field) for name, field in _schema()["properties"].items()
    ]


def _schema() -> dict[str, Any]:
    return Inputs.model_json_schema()


def _row(name: str, field: dict[str, Any]) -> list[str]:
    kind = next((each for each in field.get("anyOf", ()) if each["type"] != "null"), field)
    lowest, highest = kind.get("minimum", kind.get("ge")), kind.get("maximum", kind.get("le"))
    bounds = "" if lowest is None else f"{lowest:g} to {highest:g}"
    allowed = ", ".join(f"`{value}`" for value in kind["enum"]) if "enum" in kind else bounds
    default = field.get("default")
    shown = "" if default is None else f"`{json.dumps(default).strip(chr(34)).removesuffix('.0')}`"
    required = "required" if name in _schema()["required"] else shown
    described = kind["type"] + (" (URI)" if kind.get("format") == "uri" else "")
    return [f"`{name}`", described, required, allowed, field["description"]]


def test_the_tables_of_paths_are_the_routes() -> None:
    settings = Settings()
    routes: list[Route] = [
        *replicate.routes(NOTHING, NOTHING, settings),
        *cog.routes(NOTHING, NOTHING, settings),
        *output_files.routes(NOTHING, settings),
    ]
    told = {(method, path.strip("`")) for method, path, _ in rows(API, "| method | path | answer |")}
    served = {(method, route.path) for route in routes for method in route.methods or () if method != "HEAD"}
    assert told == served


def test_the_table_of_errors_is_the_family_with_its_statuses() -> None:
    family = {kind.__name__: kind.status for kind in _family(errors.ServiceError)}
    table = {name.strip("`"): int(status) for name, status, _ in rows(API, "| error | status | when |")}
    failures = {kind.__name__ for kind in _family(errors.PredictionFailed)} | {"PredictionFailed"}
    assert table == {name: status for name, status in family.items() if name not in failures}
    text = API.read_text()
    assert not [name for name in failures - {"PredictionFailed"} if f"`{name}`" not in text]


def _family(kind: type[errors.ServiceError]) -> set[type[errors.ServiceError]]:
    ours = {below for below in kind.__subclasses__() if below.__module__ == "serve.errors"}
    return ours.union(*(_family(below) for below in ours))


def test_the_handle_has_the_methods_that_are_told() -> None:
    tree = ast.parse((ROOT / "serve/ingress.py").read_text())
    (ingress,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Ingress")
    public = {
        f"{node.name}({', '.join(argument.arg for argument in node.args.args[1:])})"
        for node in ingress.body
        if isinstance(node, ast.AsyncFunctionDef) and not node.name.startswith("_")
    }
    told = {method.strip("`").replace("=None", "") for method, *_ in rows(API, "| method | what it gives |")}
    assert told == public

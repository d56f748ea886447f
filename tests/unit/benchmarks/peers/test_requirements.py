"""The requirements of the peers have the product's versions of what affects images and speed."""

import re
from pathlib import Path

from benchmarks.peers.environment import REQUIREMENTS
from serve.launch.subprocess_service import ROOT

SHARED = (
    "accelerate", "diffusers", "fastapi", "numpy", "pillow", "pydantic", "ray", "safetensors", "starlette",
    "tokenizers", "torch", "transformers", "uvicorn",
)  # fmt: skip
COMPARED = ("bentoml", "cog", "litserve")


def pins(path: Path) -> dict[str, str]:
    """Version by package name. Each line must be an exact release."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    matches = [re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9A-Za-z.]*)", line) for line in lines]
    assert all(matches)
    return {match[1].lower(): match[2] for match in matches if match}


def test_shared_packages_have_the_products_versions() -> None:
    product, of_peers = pins(ROOT / "requirements.lock"), pins(REQUIREMENTS)
    assert {name: of_peers[name] for name in SHARED} == {name: product[name] for name in SHARED}


def test_compared_servers_are_pinned() -> None:
    assert pins(REQUIREMENTS).keys() >= set(COMPARED)

"""Validation and overrides of settings, and secrets from the environment."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from serve.settings import (
    CompiledPart,
    Device,
    LoraProduct,
    ModelSettings,
    PoolSettings,
    Settings,
    cache_folder,
    read_secrets,
    unshared_state,
    use_compile_cache,
    use_slow_control_loop,
    uses_ray_token,
)

SEED_MODEL = "fofr/flux-handwriting-and-sketch"


@pytest.mark.parametrize(
    "tree",
    [
        {"pool": {}},
        {"pools": {"dev": {"model": "dev", "max_bach": 4}}},
        {"pools": {"dev": {"model": "pro"}}},
        {"pools": {"dev": {"model": "dev", "dtypes": {}}}},
        {"pools": {"dev": {"model": "dev", "scaling": {"min_replicas": 2, "max_replicas": 1}}}},
        {"pools": {"dev": {"model": "dev", "graceful_shutdown_timeout_s": 20}}},
        {"pools": {}},
        {"ingress_replicas": 0},
        {"ingress_scaling": {"min_replicas": 0, "max_replicas": 2}},
        {"storage_url": "http://example.org"},
        {"storage_url": "file://relative"},
        {"storage_url": "s3://"},
        {"outputs": {"link_max_age_s": 700_000}},
        {
            "served_models": [
                {"owner": "a", "name": "b", "versions": ["1"]},
                {"owner": "a", "name": "c", "versions": ["1"]},
            ]
        },
        {"served_models": [{"owner": "A b", "name": "b", "versions": ["1"]}]},
        {"openai": {"model_aliases": {"gpt-image-1": "black-forest-labs/flux-pro"}}},
        {"served_models": [{"owner": "a", "name": "b", "versions": ["d592f697", "d592f697ab"]}]},
        {"served_models": [{"owner": "a", "name": "b", "versions": ["1"], "input_bounds": {"seed": {"max": 1}}}]},
        {"deployments": [{"owner": "a", "name": "b", "model": "a/none"}]},
        {"deployments": [{"owner": "a", "name": "b", "model": SEED_MODEL, "version": "none"}]},
        {"deployments": [{"owner": "a", "name": "b", "model": SEED_MODEL}] * 2},
        {"cors_origins": ["app.example"]},
        {"cors_origins": ["https://app.example/"]},
    ],
)
def test_invalid_settings_are_rejected(tree: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(tree)


def test_secrets_are_read_from_the_environment_and_not_printed() -> None:
    secrets = read_secrets({"FLUX_SERVE_TOKEN": "s3cret", "HF_TOKEN": ""})
    assert secrets.api_token is not None
    assert secrets.api_token.get_secret_value() == "s3cret"
    assert "s3cret" not in repr(secrets)
    assert secrets.hf_token is None
    others = read_secrets({"CIVITAI_API_TOKEN": "c", "REPLICATE_API_TOKEN": "r", "HF_TOKEN": "h"})
    tokens = (others.civitai_token, others.replicate_token, others.hf_token)
    assert [token.get_secret_value() for token in tokens if token] == ["c", "r", "h"]


def test_cache_folder_comes_from_settings_or_environment() -> None:
    assert cache_folder(Settings(cache_folder=Path("/c")), {}) == Path("/c")
    assert cache_folder(Settings(), {"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x/flux-serve")
    assert cache_folder(Settings(), {"HOME": "/h"}) == Path("/h/.cache/flux-serve")


def test_partial_lora_fetch_settings_keep_the_defaults_of_lora_fetch() -> None:
    settings = Settings.model_validate({"lora": {"fetch": {"allowed_hosts": ["store.internal"]}}})
    assert settings.lora.fetch.max_bytes == 2 * 2**30
    assert settings.fetch.max_bytes == 64 * 2**20


@pytest.mark.parametrize(
    "url", ["huggingface.co", "ftp://a", "https://", "https://a/?b", "https://me@a", "https://a/#b"]
)
def test_invalid_base_url_is_rejected(url: str) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"lora": {"huggingface_url": url}})


def test_outputs_are_data_uris_unless_the_public_url_is_https_or_delivery_is_url() -> None:
    def uses_data_uris(**outputs: str) -> bool:
        return Settings.model_validate({"outputs": outputs}).outputs.uses_data_uris

    assert uses_data_uris()
    assert not uses_data_uris(public_url="https://flux.example.com")
    assert uses_data_uris(public_url="https://flux.example.com", delivery="data")
    assert not uses_data_uris(delivery="url")


def test_variant_of_a_pool_is_the_variant_of_its_model() -> None:
    assert Settings().variant_of("dev-fp8") == "dev"
    assert ModelSettings(variant="dev", max_sequence_length=512).pixel_stride == 16


@pytest.mark.parametrize(
    ("device", "compile", "lora_product", "compiled", "per_batch"),
    [
        ("cpu", None, "auto", (), False),
        ("cuda", None, "auto", ("transformer", "vae"), True),
        ("cuda", (), "auto", (), True),
        ("cpu", ("vae",), "auto", ("vae",), False),
        ("cpu", ("transformer",), "auto", ("transformer",), True),
        ("cuda", None, "per_image", ("transformer", "vae"), False),
        ("cpu", None, "per_batch", (), True),
    ],
)
def test_compiled_parts_and_lora_product_follow_the_device(
    device: Device,
    compile: tuple[CompiledPart, ...] | None,
    lora_product: LoraProduct,
    compiled: tuple[CompiledPart, ...],
    per_batch: bool,
) -> None:
    pool = PoolSettings(model="dev", device=device, compile=compile, lora_product=lora_product)
    assert pool.compiled_parts == compiled
    assert pool.lora_product_per_batch is per_batch


def test_unknown_part_cannot_be_compiled() -> None:
    with pytest.raises(ValidationError, match="compile"):
        PoolSettings.model_validate({"model": "dev", "compile": ["unet"]})


def test_compile_cache_is_in_the_cache_folder_unless_the_environment_names_another() -> None:
    settings, environment = Settings(cache_folder=Path("/c")), dict[str, str]()
    use_compile_cache(settings, environment)
    folder = Path(environment["TORCHINDUCTOR_CACHE_DIR"])
    assert folder.is_relative_to("/c")
    assert "torch-" in folder.name
    use_compile_cache(Settings(cache_folder=Path("/d")), environment)
    assert environment["TORCHINDUCTOR_CACHE_DIR"] == str(folder)


@pytest.mark.parametrize(
    "tree",
    [
        {"deployments": [{"owner": "a", "name": "b", "model": SEED_MODEL, "version": "d592f697"}]},
        {"cors_origins": ["*"]},
        {"cors_origins": ["https://app.example", "http://localhost:3000"]},
    ],
)
def test_valid_settings_are_accepted(tree: dict[str, object]) -> None:
    Settings.model_validate(tree)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, False), ({"RAY_AUTH_MODE": "disabled"}, False), ({"RAY_AUTH_MODE": "token"}, True)],
)
def test_token_of_ray_is_used_if_the_environment_says_so(environment: dict[str, str], expected: bool) -> None:
    assert uses_ray_token(environment) is expected


def test_control_loop_is_slower_unless_the_environment_says_otherwise() -> None:
    environment = dict[str, str]()
    use_slow_control_loop(environment)
    (name, interval_s), *_ = environment.items()
    assert float(interval_s) > 0.1
    other = {name: "0.1"}
    use_slow_control_loop(other)
    assert other == {name: "0.1"}


SHARED = {"database_url": "postgresql://db/flux", "storage_url": "s3://flux"}


@pytest.mark.parametrize(
    ("tree", "nodes", "named"),
    [
        ({}, 1, []),
        ({}, 2, ["database_url", "storage_url"]),
        ({"database_url": "sqlite:////x"}, 2, ["database_url", "storage_url"]),
        ({"storage_url": "file:///mnt/shared"}, 3, ["database_url", "storage_url"]),
        (SHARED | {"storage_url": "file:///mnt/shared"}, 2, ["storage_url"]),
        (SHARED, 2, []),
    ],
)
def test_state_that_several_nodes_do_not_share_is_named(tree: dict[str, str], nodes: int, named: list[str]) -> None:
    problems = unshared_state(Settings.model_validate(tree), nodes)
    assert [problem.partition(":")[0] for problem in problems] == named

"""One tree of settings: strict, frozen, overridable by dotted names; secrets only from the environment."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from serve.settings import ModelSettings, Settings, cache_folder, override, read_secrets


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
        {"ingress_replicas": 2},
        {
            "served_models": [
                {"owner": "a", "name": "b", "versions": ["1"]},
                {"owner": "a", "name": "c", "versions": ["1"]},
            ]
        },
        {"served_models": [{"owner": "A b", "name": "b", "versions": ["1"]}]},
    ],
)
def test_what_does_not_fit_is_refused(tree: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(tree)


def test_a_dotted_name_replaces_one_entry_and_keeps_its_neighbours() -> None:
    tree = Settings().model_dump()
    settings = Settings.model_validate(override(tree, "pools.schnell.scaling.min_replicas", "0"))
    assert settings.pools["schnell"].scaling.min_replicas == 0
    assert settings.pools["schnell"].model == "schnell"
    assert settings.pools["dev-fp8"] == Settings().pools["dev-fp8"]
    assert Settings.model_validate(override({}, "max_body_bytes", "100")).max_body_bytes == 100


def test_a_misspelt_dotted_name_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_bodies"):
        Settings.model_validate(override(Settings().model_dump(), "max_bodies", "100"))


def test_secrets_come_from_the_environment_and_do_not_print() -> None:
    secrets = read_secrets({"FLUX_SERVE_TOKEN": "sesame", "HF_TOKEN": ""})
    assert secrets.api_token is not None
    assert secrets.api_token.get_secret_value() == "sesame"
    assert "sesame" not in repr(secrets)
    assert secrets.hf_token is None
    more = read_secrets({"CIVITAI_API_TOKEN": "c", "REPLICATE_API_TOKEN": "r", "HF_TOKEN": "h"})
    told = (more.civitai_token, more.replicate_token, more.hf_token)
    assert [secret.get_secret_value() for secret in told if secret] == ["c", "r", "h"]


def test_the_cache_is_where_settings_or_the_environment_say() -> None:
    assert cache_folder(Settings(cache_folder=Path("/c")), {}) == Path("/c")
    assert cache_folder(Settings(), {"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x/flux-serve")
    assert cache_folder(Settings(), {"HOME": "/h"}) == Path("/h/.cache/flux-serve")


def test_bounds_on_loras_are_their_own_also_where_only_one_is_set() -> None:
    settings = Settings.model_validate({"lora": {"fetch": {"allowed_hosts": ["store.internal"]}}})
    assert settings.lora.fetch.max_bytes == 2 * 2**30
    assert settings.fetch.max_bytes == 64 * 2**20


@pytest.mark.parametrize(
    "url", ["huggingface.co", "ftp://a", "https://", "https://a/?b", "https://me@a", "https://a/#b"]
)
def test_the_base_of_a_site_is_a_plain_url(url: str) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"lora": {"huggingface_url": url}})


def test_outputs_are_data_uris_while_the_public_address_is_plain_http() -> None:
    def as_data(**outputs: str) -> bool:
        return Settings.model_validate({"outputs": outputs}).outputs.as_data

    assert as_data()
    assert not as_data(public_url="https://flux.example.com")
    assert as_data(public_url="https://flux.example.com", delivery="data")
    assert not as_data(delivery="url")


def test_the_variant_of_a_pool_is_that_of_its_model() -> None:
    assert Settings().variant_of("dev-fp8") == "dev"
    assert ModelSettings(variant="dev", max_sequence_length=512).pixel_stride == 16

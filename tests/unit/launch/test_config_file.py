"""Serve's config file is read strictly, and settings are put on top of it by name."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve.launch.config_file import ConfigError, apply_settings, embedded_config, read_config, validate_config
from serve.model_specs import SIZES

PRODUCTION = Path(__file__).parents[3] / "serve_config.yaml"

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def production() -> dict[str, Any]:
    return read_config(PRODUCTION)


def test_production_has_three_pools_of_one_gpu_with_real_weights_and_every_size_warm(
    production: dict[str, Any],
) -> None:
    schema, settings = validate_config(production)
    assert set(settings.pools) == {"dev-bf16", "dev-fp8", "schnell"}
    assert {row.name for row in schema.applications[0].deployments} == set(settings.pools)
    every_size = {size for table in SIZES.values() for size in table.values()}
    for pool in settings.pools.values():
        assert pool.num_gpus == 1
        assert pool.device == "cuda"
        assert set(pool.warmup_sizes) == every_size
    assert settings.models["dev"].revision == "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21"
    assert settings.models["schnell"].revision == "741f7c3ce8b383c54771c7003378a50191e9efe9"


def application(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["applications"][0]
    return found


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda config: config.update(http_option={}), "http_option: unknown key"),
        (lambda config: config["http_options"].update(prt=1), "http_options.prt: unknown key"),
        (lambda config: application(config).update(argz={}), "applications.0.argz: unknown key"),
        (lambda config: application(config)["args"].update(pols={}), "pols: Extra inputs"),
        (lambda config: application(config)["args"]["pools"]["schnell"].update(max_bach=1), "max_bach: Extra inputs"),
        (
            lambda config: application(config)["deployments"][0]["autoscaling_config"].update(min_replica=0),
            "deployments.0.autoscaling_config.min_replica: unknown key",
        ),
        (
            lambda config: application(config)["deployments"][0].update(ray_actor_options={"num_gpu": 1}),
            "deployments.0.ray_actor_options.num_gpu: unknown key",
        ),
        (lambda config: application(config)["deployments"][0].update(name="dev"), "there is no pool 'dev'"),
        (lambda config: application(config).update(import_path="serve.deploy:app"), "import_path: should be"),
        (lambda config: config.update(applications=[]), "one application is needed"),
        (
            lambda config: application(config)["args"]["lora"].update(aliases={"ink": "nowhere"}),
            "lora.aliases.ink: this names no LoRA",
        ),
    ],
)
def test_a_misspelt_key_is_a_fault_that_names_it(production: dict[str, Any], change: Change, fault: str) -> None:
    change(production)
    with pytest.raises(ConfigError, match=fault):
        validate_config(production)


def test_settings_are_put_on_top_by_dotted_name(production: dict[str, Any]) -> None:
    before = copy.deepcopy(production)
    changed = apply_settings(production, {"pools.dev-fp8.device": "cpu", "safety.checker": "none", "max_records": "7"})
    _, settings = validate_config(changed)
    assert settings.pools["dev-fp8"].device == "cpu"
    assert settings.pools["dev-fp8"].quantize_t5
    assert settings.safety.checker == "none"
    assert settings.max_records == 7
    assert production == before


def test_setting_one_key_of_an_embedded_pool_keeps_the_other_pools() -> None:
    _, settings = validate_config(apply_settings(embedded_config(), {"pools.schnell.scaling.min_replicas": "0"}))
    assert settings.pools["schnell"].scaling.min_replicas == 0
    assert set(settings.pools) == {"dev-bf16", "dev-fp8", "schnell"}


@pytest.mark.parametrize(("text", "fault"), [("a: [", "while parsing"), ("- a", "not a mapping")])
def test_what_is_no_yaml_mapping_is_refused_with_its_name(tmp_path: Path, text: str, fault: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=fault):
        read_config(file)


def test_a_missing_file_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        read_config(Path("nowhere.yaml"))

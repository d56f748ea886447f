"""Validation of the config file, and settings applied to it by dotted name."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve.launch.config_file import ConfigError, apply_settings, embedded_config, read_config, validate_config
from serve.output_sizes import SIZES
from serve.settings import Settings

PRODUCTION = Path(__file__).parents[3] / "serve_config.yaml"

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def production() -> dict[str, Any]:
    return read_config(PRODUCTION)


def test_production_has_three_gpu_pools_that_warm_up_every_size(production: dict[str, Any]) -> None:
    schema, settings = validate_config(production)
    assert set(settings.pools) == {"dev-bf16", "dev-fp8", "schnell"}
    assert {deployment.name for deployment in schema.applications[0].deployments} == set(settings.pools)
    all_sizes = {size for sizes in SIZES.values() for size in sizes.values()}
    for pool in settings.pools.values():
        assert pool.num_gpus == 1
        assert pool.device == "cuda"
        assert set(pool.warmup_sizes) == all_sizes
    assert settings.models["dev"].revision == "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21"
    assert settings.models["schnell"].revision == "741f7c3ce8b383c54771c7003378a50191e9efe9"


def application(config: dict[str, Any]) -> dict[str, Any]:
    only: dict[str, Any] = config["applications"][0]
    return only


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda config: config.update(http_option={}), r"^http_option\b"),
        (lambda config: config["http_options"].update(prt=1), r"http_options\.prt\b"),
        (lambda config: application(config).update(argz={}), r"applications\.0\.argz\b"),
        (lambda config: application(config)["args"].update(pols={}), r"\bpols\b"),
        (
            lambda config: application(config)["args"]["pools"]["schnell"].update(max_bach=1),
            r"pools\.schnell\.max_bach\b",
        ),
        (
            lambda config: application(config)["deployments"][0]["autoscaling_config"].update(min_replica=0),
            r"deployments\.0\.autoscaling_config\.min_replica\b",
        ),
        (
            lambda config: application(config)["deployments"][0].update(ray_actor_options={"num_gpu": 1}),
            r"deployments\.0\.ray_actor_options\.num_gpu\b",
        ),
        (lambda config: application(config)["deployments"][0].update(name="dev"), r"deployments.*'dev'"),
        (lambda config: application(config).update(import_path="serve.deploy:app"), r"import_path\b"),
        (lambda config: config.update(applications=[]), "one application"),
        (
            lambda config: application(config)["args"]["lora"].update(aliases={"sketch": "nowhere"}),
            r"lora\.aliases\.sketch\b",
        ),
        (
            lambda config: application(config)["args"]["served_models"][0].update(default_inputs={"steps": 4}),
            r"served_models.*\bsteps\b",
        ),
    ],
)
def test_invalid_config_is_rejected_with_the_key(production: dict[str, Any], change: Change, key: str) -> None:
    change(production)
    with pytest.raises(ConfigError, match=key):
        validate_config(production)


def test_settings_are_applied_by_dotted_name(production: dict[str, Any]) -> None:
    before = copy.deepcopy(production)
    changed = apply_settings(production, {"pools.dev-fp8.device": "cpu", "safety.checker": "none", "max_records": "7"})
    _, settings = validate_config(changed)
    assert settings.pools["dev-fp8"].device == "cpu"
    assert settings.pools["dev-fp8"].quantize_t5
    assert settings.safety.checker == "none"
    assert settings.max_records == 7
    assert production == before


def test_setting_of_an_embedded_pool_keeps_the_other_pools() -> None:
    _, settings = validate_config(apply_settings(embedded_config(), {"pools.schnell.scaling.min_replicas": "1"}))
    defaults = Settings().pools
    scaling = settings.pools["schnell"].scaling
    assert scaling == defaults["schnell"].scaling.model_copy(update={"min_replicas": 1})
    assert settings.pools["schnell"].model == "schnell"
    assert settings.pools["dev-fp8"] == defaults["dev-fp8"]
    assert settings.pools.keys() == defaults.keys()


@pytest.mark.parametrize("name", ["max_bodies", "pools.schnell.max_bach"])
def test_unknown_setting_is_rejected(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        validate_config(apply_settings(embedded_config(), {name: "100"}))


@pytest.mark.parametrize(("text", "reason"), [("a: [", "parsing"), ("- a", "mapping")])
def test_file_that_is_not_a_yaml_mapping_is_rejected(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"config\.yaml: .*{reason}"):
        read_config(file)


def test_missing_file_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        read_config(Path("nowhere.yaml"))

"""cluster.yaml is valid for Ray and has nodes for every replica of serve_config.yaml."""

import copy
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config

from serve.launch import config_file

ROOT = Path(__file__).parents[2]
CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
HEAD = CLUSTER["available_node_types"][CLUSTER["head_node_type"]]
WORKERS = {name: node for name, node in CLUSTER["available_node_types"].items() if node is not HEAD}
COMMANDS = [command for key, commands in CLUSTER.items() if key.endswith("_commands") for command in commands]


def demands() -> list[dict[str, float]]:
    """The resources of every replica, with all pools at their maximum size."""
    schema, settings = config_file.validate_config(config_file.read_config(ROOT / "serve_config.yaml"))
    max_replicas = {each.name: each.autoscaling_config["max_replicas"] for each in schema.applications[0].deployments}
    return [
        {"CPU": pool.num_cpus, "GPU": pool.num_gpus}
        for name, pool in settings.pools.items()
        for _ in range(max_replicas.get(name, pool.scaling.max_replicas))
    ]


def nodes_for(demands: list[dict[str, float]]) -> tuple[dict[str, int], list[dict[str, float]]]:
    """The number of workers of each type that Ray's autoscaler would start, and the demands that fit on none."""
    scorer = partial(_default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({}))
    node_types, head, max_workers = CLUSTER["available_node_types"], CLUSTER["head_node_type"], CLUSTER["max_workers"]
    added, unfulfilled = get_nodes_for(node_types, {head: 1}, head, max_workers, demands, scorer)
    return dict(added), unfulfilled


def test_ray_accepts_the_file() -> None:
    validate_config(prepare_config(copy.deepcopy(CLUSTER)))


def test_ray_rejects_a_misspelt_key() -> None:
    misspelt = CLUSTER | {"idle_timeout": 5}
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(prepare_config(misspelt))


def test_only_workers_have_gpus_and_they_scale_from_zero() -> None:
    assert "GPU" not in HEAD["resources"]
    assert HEAD["max_workers"] == 0
    assert WORKERS
    for worker in WORKERS.values():
        assert worker["min_workers"] == 0
        assert worker["resources"]["GPU"] >= 1


def test_max_workers_equals_the_need_of_all_pools_at_maximum_size() -> None:
    added, unfulfilled = nodes_for(demands())
    assert unfulfilled == []
    assert sum(added.values()) == CLUSTER["max_workers"] == sum(worker["max_workers"] for worker in WORKERS.values())


def test_replica_larger_than_a_node_is_unfulfilled() -> None:
    assert nodes_for([{"CPU": 64, "GPU": 1}]) == ({}, [{"CPU": 64, "GPU": 1}])


def test_on_demand_workers_start_before_spot_workers() -> None:
    is_spot = {name: "InstanceMarketOptions" in worker["node_config"] for name, worker in WORKERS.items()}
    (first,) = nodes_for(demands()[:1])[0]
    assert is_spot[first] is False
    assert True in is_spot.values()


def test_ingress_fits_on_the_head() -> None:
    _, settings = config_file.validate_config(config_file.read_config(ROOT / "serve_config.yaml"))
    assert settings.ingress_scaling is None
    assert settings.ingress_replicas * settings.ingress_num_cpus <= HEAD["resources"]["CPU"]


def test_all_nodes_have_the_same_image_and_setup() -> None:
    nodes = CLUSTER["available_node_types"].values()
    assert len({node["node_config"]["ImageId"] for node in nodes}) == 1
    assert not any("setup_commands" in key for node in nodes for key in node)
    assert "cd ~/flux-serve && PYTHON=python3.12 scripts/setup" in CLUSTER["setup_commands"]
    assert CLUSTER["file_mounts"]["/home/ubuntu/flux-serve"] == "."


def test_only_ssh_is_reachable_and_ray_requires_its_token() -> None:
    assert "security_group" not in CLUSTER["provider"]
    assert any("RAY_AUTH_MODE=token" in command for command in CLUSTER["setup_commands"])
    hosts = re.findall(r"--dashboard-host=(\S+)", " ".join(COMMANDS))
    assert hosts == ["127.0.0.1"]


def test_packages_outside_the_lock_have_exact_versions() -> None:
    for command in COMMANDS:
        if "pip install" in command:
            assert re.fullmatch(r".* install -q [a-z0-9]+==[0-9.]+", command)

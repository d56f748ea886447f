"""cluster.yaml, by the validation and the packing of Ray itself; serve_config.yaml says what must fit on its nodes."""

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
WORKERS = {name: kind for name, kind in CLUSTER["available_node_types"].items() if kind is not HEAD}
COMMANDS = [command for key, commands in CLUSTER.items() if key.endswith("_commands") for command in commands]


def demands() -> list[dict[str, float]]:
    """What every replica that the production configuration allows asks of a node."""
    schema, settings = config_file.validate_config(config_file.read_config(ROOT / "serve_config.yaml"))
    most = {row.name: row.autoscaling_config["max_replicas"] for row in schema.applications[0].deployments}
    return [
        {"CPU": pool.num_cpus, "GPU": pool.num_gpus}
        for name, pool in settings.pools.items()
        for _ in range(most.get(name, pool.scaling.max_replicas))
    ]


def nodes_for(asked: list[dict[str, float]]) -> tuple[dict[str, int], list[dict[str, float]]]:
    """The workers that Ray's autoscaler would start for this, and what would stay without a place."""
    scorer = partial(_default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({}))
    kinds, head, most = CLUSTER["available_node_types"], CLUSTER["head_node_type"], CLUSTER["max_workers"]
    added, without_place = get_nodes_for(kinds, {head: 1}, head, most, asked, scorer)
    return dict(added), without_place


def test_ray_accepts_it() -> None:
    validate_config(prepare_config(copy.deepcopy(CLUSTER)))


def test_ray_would_refuse_a_misspelt_key() -> None:
    misspelt = CLUSTER | {"idle_timeout": 5}
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(prepare_config(misspelt))


def test_workers_have_gpus_and_start_from_none_and_the_head_has_none() -> None:
    assert "GPU" not in HEAD["resources"]
    assert HEAD["max_workers"] == 0
    assert WORKERS
    for kind in WORKERS.values():
        assert kind["min_workers"] == 0
        assert kind["resources"]["GPU"] >= 1


def test_all_pools_find_room_at_their_largest_and_no_more_is_paid_for() -> None:
    added, without_place = nodes_for(demands())
    assert without_place == []
    assert sum(added.values()) == CLUSTER["max_workers"] == sum(kind["max_workers"] for kind in WORKERS.values())


def test_a_replica_that_asks_for_more_than_a_node_has_finds_no_room() -> None:
    assert nodes_for([{"CPU": 64, "GPU": 1}]) == ({}, [{"CPU": 64, "GPU": 1}])


def test_machines_that_stay_are_started_before_those_that_may_be_taken_away() -> None:
    kinds = {name: "InstanceMarketOptions" in kind["node_config"] for name, kind in WORKERS.items()}
    (first,) = nodes_for(demands()[:1])[0]
    assert kinds[first] is False
    assert True in kinds.values()


def test_the_head_holds_the_ingress() -> None:
    _, settings = config_file.validate_config(config_file.read_config(ROOT / "serve_config.yaml"))
    assert settings.ingress_replicas * settings.ingress_num_cpus <= HEAD["resources"]["CPU"]


def test_every_node_has_the_same_image_and_is_set_up_alike() -> None:
    kinds = CLUSTER["available_node_types"].values()
    assert len({kind["node_config"]["ImageId"] for kind in kinds}) == 1
    assert not any("setup_commands" in key for kind in kinds for key in kind)
    assert "cd ~/flux-serve && PYTHON=python3.12 scripts/setup" in CLUSTER["setup_commands"]
    assert CLUSTER["file_mounts"]["/home/ubuntu/flux-serve"] == "."


def test_nothing_but_ssh_is_reachable_and_ray_asks_for_its_token() -> None:
    assert "security_group" not in CLUSTER["provider"]
    assert any("RAY_AUTH_MODE=token" in command for command in CLUSTER["setup_commands"])
    hosts = re.findall(r"--dashboard-host=(\S+)", " ".join(COMMANDS))
    assert hosts == ["127.0.0.1"]


def test_what_it_installs_beside_the_lock_is_exact() -> None:
    for command in COMMANDS:
        if "pip install" in command:
            assert re.fullmatch(r".* install -q [a-z0-9]+==[0-9.]+", command)

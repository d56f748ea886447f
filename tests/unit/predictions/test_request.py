"""Preparing requests from raw inputs, their first record, and resolving served models and versions."""

from collections.abc import Mapping
from typing import Any

import pytest

from serve.errors import InvalidInput, NotFound, UnknownVersion
from serve.predictions.prediction import Prediction
from serve.predictions.request import (
    PreparedRequest,
    ServedVersion,
    check_served_models,
    default_pool,
    match_version,
    prepare_request,
    resolve_deployment,
    resolve_model,
    resolve_model_id,
    resolve_version,
)
from serve.settings import DeploymentSettings, InputBounds, ServedModel, Settings
from tests.fakes import NOON

SETTINGS = Settings(
    served_models=(
        ServedModel(owner="me", name="plain", versions=("1",)),
        ServedModel(
            owner="me", name="quick", versions=("2",), default_inputs={"model": "schnell", "num_inference_steps": 4}
        ),
    )
)
SETTINGS_WITH_VERSIONS = Settings(
    served_models=(
        ServedModel(owner="me", name="first", versions=("new", "old")),
        ServedModel(owner="you", name="second", versions=("d592f697",)),
    )
)
LORA = "huggingface.co/me/sketch"


def prepare(raw: Mapping[str, Any], model: str = "me/plain") -> PreparedRequest:
    return prepare_request({"prompt": "a cat", **raw}, resolve_version(SETTINGS, model), SETTINGS, random_seed=99)


def new_prediction(raw: Mapping[str, Any], model: str = "me/plain") -> Prediction:
    request = prepare(raw, model)
    return request.new_prediction(request.plan, NOON)


@pytest.mark.parametrize(
    ("raw", "pool", "steps"),
    [
        ({}, "schnell", 4),
        ({"num_inference_steps": 2}, "schnell", 2),
        ({"num_inference_steps": None}, "schnell", 4),
        ({"model": "dev"}, "dev-bf16", 4),
    ],
)
def test_inputs_of_the_caller_override_default_inputs_of_the_model(
    raw: Mapping[str, Any], pool: str, steps: int
) -> None:
    plan = prepare(raw, "me/quick").plan
    assert (plan.pool, plan.steps) == (pool, steps)


@pytest.mark.parametrize(
    ("raw", "seed"), [({"seed": 5, "num_outputs": 2}, 5), ({}, 99), ({"seed": None}, 99), ({"seed": -1}, 99)]
)
def test_record_contains_the_seed(raw: Mapping[str, Any], seed: int) -> None:
    prediction = new_prediction(raw)
    assert prediction.plan.seeds[0] == seed
    assert prediction.metrics["seed"] == seed
    assert f"Using seed: {seed}\n" in prediction.logs


def test_record_contains_the_inputs_as_sent() -> None:
    raw = {"prompt": "a cat", "seed": "7", "image": None}
    assert new_prediction(raw, "me/quick").inputs == raw


def test_long_inputs_are_shortened_in_the_record() -> None:
    long = "data:image/png;base64," + "A" * 100_000
    short = "data:image/png;base64," + "A" * 1000
    inputs = new_prediction({"image": long, "mask": short}).inputs
    assert inputs["mask"] == short
    assert inputs["image"] == "data:image/png;base64," + "A" * 42 + "... (100022 characters)"


def test_ignored_keys_are_logged_and_not_recorded() -> None:
    prediction = new_prediction({"scheduler": "euler", "negative_prompt": "dogs"})
    assert prediction.inputs == {"prompt": "a cat"}
    assert "ignored: scheduler, negative_prompt\n" in prediction.logs


def test_logged_ignored_keys_are_few_short_and_printable() -> None:
    raw = {"x" * 1000: 1, "\ud800\n": 1, **{f"key{index}": 1 for index in range(30)}}
    line = new_prediction(raw).logs.split("\n")[0]
    assert f": {'x' * 63}…, \\ud800\\n, key0," in line
    assert line.endswith("key17 and 12 more")


def test_notes_of_the_plan_are_logged() -> None:
    prediction = new_prediction({"model": "schnell", "go_fast": True})
    assert prediction.plan.notes
    assert all(f"{note}\n" in prediction.logs for note in prediction.plan.notes)


def test_all_invalid_fields_are_reported_together() -> None:
    with pytest.raises(InvalidInput) as caught:
        prepare({"prompt": None, "num_outputs": 9, "seed": float("nan")})
    assert [(error.field, error.kind) for error in caught.value.field_errors] == [
        ("prompt", "missing"),
        ("num_outputs", "less_than_equal"),
        ("seed", "finite_number"),
    ]


@pytest.mark.parametrize("field", ["replicate_weights", "extra_lora"])
def test_spellings_of_a_lora_have_the_same_reference_key(field: str) -> None:
    request, other = (prepare({field: text}) for text in (f"  https://{LORA}", LORA))
    reference = request.references[field]
    key = reference.key
    assert (list(request.references), reference.display_name) == ([field], LORA)
    assert [lora.reference_key for lora in request.plan.loras] == [key]
    assert [lora.reference_key for lora in other.plan.loras] == [key]


def test_two_spellings_of_one_lora_share_a_reference() -> None:
    request = prepare({"replicate_weights": LORA, "extra_lora": f"https://{LORA}"})
    (key,) = {reference.key for reference in request.references.values()}
    assert [lora.reference_key for lora in request.plan.loras] == [key, key]


@pytest.mark.parametrize("text", ["", "  ", None])
def test_empty_lora_input_plans_no_lora(text: str | None) -> None:
    request = prepare({"replicate_weights": text})
    assert (request.plan.loras, dict(request.references)) == ((), {})


def test_invalid_loras_are_reported_with_other_invalid_fields() -> None:
    raw = {"replicate_weights": "a cat", "extra_lora": "file:///etc/passwd", "mask": "https://masks.example/mask.png"}
    with pytest.raises(InvalidInput) as caught:
        prepare(raw)
    messages = {error.field: error.message for error in caught.value.field_errors}
    assert set(messages) == {"replicate_weights", "extra_lora", "mask"}
    assert "owner/name" in messages["replicate_weights"], "the message lists the accepted forms"
    assert "lora.folders" in messages["extra_lora"]


def test_invalid_lora_alone_is_reported() -> None:
    with pytest.raises(InvalidInput) as caught:
        prepare({"extra_lora": "a cat"})
    assert [error.field for error in caught.value.field_errors] == ["extra_lora"]


@pytest.mark.parametrize(
    ("raw", "display_names"),
    [({}, ["fofr/sketch"]), ({"replicate_weights": LORA}, [LORA]), ({"replicate_weights": ""}, [])],
)
def test_lora_of_the_caller_replaces_that_of_the_served_model(raw: Mapping[str, Any], display_names: list[str]) -> None:
    model = ServedModel(
        owner="fofr", name="sketch", versions=("1",), default_inputs={"replicate_weights": "fofr/sketch"}
    )
    settings = Settings(served_models=(model,))
    request = prepare_request({"prompt": "a cat", **raw}, resolve_version(settings, None), settings, random_seed=1)
    assert [reference.display_name for reference in request.references.values()] == display_names


@pytest.mark.parametrize(
    ("reference", "model", "version"),
    [
        (None, "me/first", "new"),
        ("old", "me/first", "old"),
        ("me/first", "me/first", "new"),
        ("me/first:old", "me/first", "old"),
        ("d592f697", "you/second", "d592f697"),
        ("you/second:d592f697", "you/second", "d592f697"),
    ],
)
def test_version_is_resolved_by_id_model_or_both(reference: str | None, model: str, version: str) -> None:
    served = resolve_version(SETTINGS_WITH_VERSIONS, reference)
    assert (served.model.full_name, served.version) == (model, version)


HEX = "d592f697" * 8


@pytest.mark.parametrize(
    ("served", "requested", "expected"),
    [
        (["d592f697"], "d592f697", "d592f697"),
        (["d592f697"], HEX, "d592f697"),
        ([HEX], "d592f697", HEX),
        ([HEX], HEX[:9], HEX),
        ([HEX], HEX[:7], None),
        (["d592f69"], HEX, None),
        (["d592f697"], "d592f697-x", None),
        (["embedded-flux"], "embedded", None),
        (["embedded-flux"], "embedded-flux", "embedded-flux"),
        ([f"{HEX[:16]}1", f"{HEX[:16]}2"], HEX[:16], None),
        ([f"{HEX[:16]}1", f"{HEX[:16]}2"], f"{HEX[:16]}2", f"{HEX[:16]}2"),
    ],
)
def test_hexadecimal_version_id_may_be_abbreviated(served: list[str], requested: str, expected: str | None) -> None:
    assert match_version(requested, served) == expected


def test_abbreviated_version_is_resolved_to_the_served_id() -> None:
    for reference in (HEX, f"you/second:{HEX}"):
        served = resolve_version(SETTINGS_WITH_VERSIONS, reference)
        assert (served.model.full_name, served.version) == ("you/second", "d592f697")
    with pytest.raises(UnknownVersion):
        resolve_version(SETTINGS_WITH_VERSIONS, f"me/first:{HEX}")


@pytest.mark.parametrize("reference", ["", "other", "me/second", "me/first:", "me/first:d592f697", "first", "\ud800"])
def test_unknown_version_is_rejected(reference: str) -> None:
    with pytest.raises(UnknownVersion) as caught:
        resolve_version(SETTINGS_WITH_VERSIONS, reference)
    assert repr(reference) in str(caught.value)


def test_model_is_resolved_by_owner_and_name() -> None:
    assert resolve_model(SETTINGS_WITH_VERSIONS, "you", "second").version == "d592f697"
    with pytest.raises(NotFound, match="'me/second'"):
        resolve_model(SETTINGS_WITH_VERSIONS, "me", "second")


def test_model_is_resolved_by_its_name_alone() -> None:
    assert resolve_model_id(SETTINGS_WITH_VERSIONS, "second").full_name == "you/second"
    assert resolve_model_id(SETTINGS_WITH_VERSIONS, "you/second").full_name == "you/second"
    with pytest.raises(NotFound):
        resolve_model_id(SETTINGS_WITH_VERSIONS, "you")


def test_deployment_is_resolved_to_its_version_or_the_newest_one() -> None:
    settings = SETTINGS_WITH_VERSIONS.model_copy(
        update={
            "deployments": (
                DeploymentSettings(owner="a", name="new", model="me/first"),
                DeploymentSettings(owner="a", name="old", model="me/first", version="old"),
            )
        }
    )
    for name in ("new", "old"):
        served = resolve_deployment(settings, "a", name)
        assert (served.model.full_name, served.version) == ("me/first", name)
    with pytest.raises(NotFound, match="'b/new'"):
        resolve_deployment(settings, "b", "new")


def served_with(**fields: Any) -> ServedVersion:
    return ServedVersion(ServedModel(owner="me", name="mine", versions=("1",), **fields), "1")


def test_inputs_of_a_model_are_renamed() -> None:
    served = served_with(input_aliases={"guidance": "guidance_scale"})
    assert served.rename_inputs({"prompt": "a", "guidance": 5}) == {"prompt": "a", "guidance_scale": 5}
    assert served.rename_inputs({"guidance_scale": 5, "guidance": None})["guidance_scale"] == 5
    assert served.rename_inputs({"guidance_scale": None, "guidance": 5})["guidance_scale"] == 5
    with pytest.raises(InvalidInput) as caught:
        served.rename_inputs({"guidance": 5, "guidance_scale": 4})
    assert [error.field for error in caught.value.field_errors] == ["guidance"]


BOUNDS = {
    "num_inference_steps": InputBounds(minimum=2, maximum=4),
    "width": InputBounds(maximum=512),
    "model": InputBounds(choices=("schnell",)),
}


@pytest.mark.parametrize(
    ("raw", "kinds"),
    [
        ({"num_inference_steps": 2, "model": "schnell"}, {}),
        ({"num_inference_steps": 4, "model": "schnell", "width": 512}, {}),
        ({"num_inference_steps": 5, "model": "schnell"}, {"num_inference_steps": "less_than_equal"}),
        (
            {"num_inference_steps": 1, "width": 513},
            {"num_inference_steps": "greater_than_equal", "width": "less_than_equal", "model": "literal_error"},
        ),
    ],
)
def test_inputs_outside_the_bounds_of_a_model_are_reported(raw: Mapping[str, Any], kinds: dict[str, str]) -> None:
    served = served_with(input_bounds=BOUNDS)
    if not kinds:
        prepare_request({"prompt": "a", **raw}, served, Settings(), random_seed=1)
        return
    with pytest.raises(InvalidInput) as caught:
        prepare_request({"prompt": "a", **raw}, served, Settings(), random_seed=1)
    assert {error.field: error.kind for error in caught.value.field_errors} == kinds


def test_default_pool_follows_the_default_inputs() -> None:
    settings = Settings()
    assert default_pool(served_with(), settings) == "dev-bf16"
    assert default_pool(served_with(default_inputs={"go_fast": True}), settings) == "dev-fp8"
    assert default_pool(served_with(default_inputs={"model": "schnell"}), settings) == "schnell"


@pytest.mark.parametrize(
    "fields",
    [
        {"default_inputs": {"steps": 4}},
        {"input_aliases": {"guidance": "guidence_scale"}},
        {"input_aliases": {"prompt": "guidance_scale"}},
        {"input_bounds": {"steps": InputBounds(maximum=4)}},
    ],
)
def test_served_model_with_an_unknown_input_is_rejected_at_start(fields: dict[str, Any]) -> None:
    check_served_models(Settings())
    with pytest.raises(ValueError, match="me/mine"):
        check_served_models(Settings(served_models=(served_with(**fields).model,)))

"""From raw inputs to the first record."""

from collections.abc import Mapping
from typing import Any

import pytest

from serve.errors import InvalidInput
from serve.predictions.prediction import Prediction
from serve.predictions.request import PreparedRequest, prepare_request, resolve_version
from serve.settings import ServedModel, Settings
from tests.fakes import NOON

SETTINGS = Settings(
    served_models=(
        ServedModel(owner="me", name="plain", versions=("1",)),
        ServedModel(
            owner="me", name="quick", versions=("2",), default_inputs={"model": "schnell", "num_inference_steps": 4}
        ),
    )
)


def order(raw: Mapping[str, Any], model: str = "me/plain") -> PreparedRequest:
    return prepare_request({"prompt": "a cat", **raw}, resolve_version(SETTINGS, model), SETTINGS, random_seed=99)


def record(raw: Mapping[str, Any], model: str = "me/plain") -> Prediction:
    asked = order(raw, model)
    return asked.new_prediction(asked.plan, NOON)


@pytest.mark.parametrize(
    ("raw", "pool", "steps"),
    [
        ({}, "schnell", 4),
        ({"num_inference_steps": 2}, "schnell", 2),
        ({"num_inference_steps": None}, "schnell", 4),
        ({"model": "dev"}, "dev-bf16", 4),
    ],
)
def test_default_inputs_of_the_model_lie_beneath_those_of_the_caller(
    raw: Mapping[str, Any], pool: str, steps: int
) -> None:
    plan = order(raw, "me/quick").plan
    assert (plan.pool, plan.steps) == (pool, steps)


@pytest.mark.parametrize(("raw", "seed"), [({"seed": 5, "num_outputs": 2}, 5), ({}, 99), ({"seed": None}, 99)])
def test_the_seed_that_is_used_is_told(raw: Mapping[str, Any], seed: int) -> None:
    asked = record(raw)
    assert asked.plan.seeds[0] == seed
    assert asked.metrics["seed"] == seed
    assert f"Using seed: {seed}\n" in asked.logs


def test_the_record_shows_what_was_given_and_not_what_was_made_of_it() -> None:
    given = {"prompt": "a cat", "seed": "7", "image": None}
    assert record(given, "me/quick").inputs == given


def test_a_record_does_not_carry_a_large_picture_along() -> None:
    uri = "data:image/png;base64," + "A" * 100_000
    small = "data:image/png;base64," + "A" * 1000
    kept = record({"image": uri, "mask": small}).inputs
    assert kept["mask"] == small
    assert kept["image"] == "data:image/png;base64," + "A" * 42 + "... (100022 characters)"


def test_dropped_keys_are_named_and_not_kept() -> None:
    asked = record({"scheduler": "euler", "negative_prompt": "dogs"})
    assert asked.inputs == {"prompt": "a cat"}
    assert asked.logs.startswith("Unknown inputs were ignored: scheduler, negative_prompt\n")


def test_names_that_a_caller_made_up_stay_short_and_printable() -> None:
    line = record({"x" * 1000: 1, "\ud800": 1, **{f"key{index}": 1 for index in range(30)}}).logs.split("\n")[0]
    assert line.startswith(f"Unknown inputs were ignored: {'x' * 63}…, \\ud800, key0,")
    assert line.endswith("key17 and 12 more")


def test_notes_of_the_plan_are_lines_of_the_log() -> None:
    assert "go_fast has no effect with schnell\n" in record({"model": "schnell", "go_fast": True}).logs


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(InvalidInput) as refused:
        order({"prompt": None, "num_outputs": 9, "seed": float("nan")})
    assert [(fault.field, fault.kind) for fault in refused.value.field_errors] == [
        ("prompt", "missing"),
        ("num_outputs", "less_than_equal"),
        ("seed", "finite_number"),
    ]


WEIGHTS = "huggingface.co/me/ink"


@pytest.mark.parametrize("field", ["replicate_weights", "extra_lora"])
def test_a_lora_is_planned_by_the_key_of_what_its_text_means(field: str) -> None:
    asked, same = (order({field: text}) for text in (f"  https://{WEIGHTS}", WEIGHTS))
    (key,) = asked.references
    assert asked.references[key].display_name == WEIGHTS
    assert [use.reference_key for use in asked.plan.loras] == [key] == [use.reference_key for use in same.plan.loras]


def test_two_spellings_of_one_lora_are_one_reference_used_twice() -> None:
    asked = order({"replicate_weights": WEIGHTS, "extra_lora": f"https://{WEIGHTS}"})
    (key,) = asked.references
    assert [use.reference_key for use in asked.plan.loras] == [key, key]


@pytest.mark.parametrize("text", ["", "  ", None])
def test_an_empty_text_is_no_lora(text: str | None) -> None:
    asked = order({"replicate_weights": text})
    assert (asked.plan.loras, dict(asked.references)) == ((), {})


def test_texts_that_name_no_lora_are_faults_beside_the_others() -> None:
    with pytest.raises(InvalidInput) as caught:
        order(
            {"replicate_weights": "a cat", "extra_lora": "file:///etc/passwd", "mask": "https://there.example/mask.png"}
        )
    faults = {fault.field: fault.message for fault in caught.value.field_errors}
    assert set(faults) == {"replicate_weights", "extra_lora", "mask"}
    assert "owner/name" in faults["replicate_weights"], "the accepted forms are shown"
    assert "lora.folders" in faults["extra_lora"]


def test_a_text_that_names_no_lora_is_a_fault_also_alone() -> None:
    with pytest.raises(InvalidInput, match="extra_lora: this names no LoRA"):
        order({"extra_lora": "a cat"})


@pytest.mark.parametrize(
    ("raw", "shown"),
    [({}, ["fofr/ink"]), ({"replicate_weights": WEIGHTS}, [WEIGHTS]), ({"replicate_weights": ""}, [])],
)
def test_weights_of_the_served_model_are_replaced_by_those_of_the_caller(
    raw: Mapping[str, Any], shown: list[str]
) -> None:
    weighted = ServedModel(owner="fofr", name="ink", versions=("1",), default_inputs={"replicate_weights": "fofr/ink"})
    settings = Settings(served_models=(weighted,))
    asked = prepare_request({"prompt": "a cat", **raw}, resolve_version(settings, None), settings, random_seed=1)
    assert [each.display_name for each in asked.references.values()] == shown

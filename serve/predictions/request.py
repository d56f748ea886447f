"""Turns raw inputs into a `PreparedRequest`: served model, validated inputs, LoRA references and plan."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from serve.errors import FieldError, InvalidInput, NotFound, UnknownVersion
from serve.inputs import Inputs, validate_inputs
from serve.lora.parse import parse_reference
from serve.lora.reference import InvalidReference, Reference
from serve.plan import Plan, make_plan
from serve.predictions.prediction import Prediction, new_id
from serve.settings import ServedModel, Settings


class ServedVersion(NamedTuple):
    model: ServedModel
    version: str


def resolve_version(settings: Settings, reference: str | None) -> ServedVersion:
    """The model for a version id, `owner/name` or `owner/name:id`; the first row for None.

    Raises `UnknownVersion`.
    """
    if reference is None:
        return _newest(settings.served_models[0])
    for model in settings.served_models:
        if reference == model.full_name:
            return _newest(model)
        version = reference.removeprefix(f"{model.full_name}:")
        if version in model.versions:
            return ServedVersion(model, version)
    raise UnknownVersion(reference)


def resolve_model(settings: Settings, owner: str, name: str) -> ServedVersion:
    """The model with a name, as it stands in a path. Raises `NotFound`."""
    for model in settings.served_models:
        if (owner, name) == (model.owner, model.name):
            return _newest(model)
    raise NotFound(f"no model {f'{owner}/{name}'[:100]!r} is served here")


def _newest(model: ServedModel) -> ServedVersion:
    return ServedVersion(model, model.versions[0])


KEPT_CHARS = 2**16
"""Longer inputs, pictures as a rule, are not kept whole: a record is sent again with every poll."""
NAMED_KEYS = 20
LORA_FIELDS = ("replicate_weights", "extra_lora")


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    served: ServedVersion
    given: Mapping[str, Any]
    """What the caller gave, without defaults."""
    inputs: Inputs
    dropped: tuple[str, ...]
    plan: Plan
    """Without a size while there is an input picture; each LoRA is named by the key of its reference."""
    references: Mapping[str, Reference]
    """By their keys."""

    def record(self, plan: Plan, at: datetime) -> Prediction:
        """The first record, for the plan as far as it is complete."""
        seed = plan.seeds[0]
        prediction = Prediction(
            id=new_id(),
            model=self.served.model.full_name,
            version=self.served.version,
            inputs={key: _kept(value) for key, value in self.given.items() if key in Inputs.model_fields},
            plan=plan,
            created_at=at,
            metrics={"seed": seed, "pool": plan.pool},
        )
        return prediction.with_log_lines(*_dropped_note(self.dropped), *plan.notes, f"Using seed: {seed}")


def prepare_request(
    raw: Mapping[str, Any], served: ServedVersion, settings: Settings, random_seed: int
) -> PreparedRequest:
    """The order for raw inputs, with the default inputs of the served model beneath them.

    Raises `InvalidInput`.
    """
    given = {key: value for key, value in raw.items() if value is not None}
    inputs, dropped = validate_inputs(served.model.default_inputs | given, settings.max_prompt_chars)
    references, faults = _read_references(inputs, settings)
    try:
        plan = make_plan(inputs, settings, random_seed)
    except InvalidInput as refusal:
        raise InvalidInput((*refusal.field_errors, *faults)) from None
    if faults:
        raise InvalidInput(faults)
    plan = plan.with_lora_keys({text: reference.key for text, reference in references.items()})
    return PreparedRequest(served, raw, inputs, dropped, plan, {each.key: each for each in references.values()})


def _read_references(inputs: Inputs, settings: Settings) -> tuple[dict[str, Reference], tuple[FieldError, ...]]:
    """The LoRAs of the inputs by what was written, and a fault for each text that names none."""
    references, faults = {}, []
    for field in LORA_FIELDS:
        text = (getattr(inputs, field) or "").strip()
        try:
            if text:
                references[text] = parse_reference(text, settings.lora)
        except InvalidReference as error:
            faults.append(FieldError(field, str(error)))
    return references, tuple(faults)


def _kept(value: object) -> object:
    if not isinstance(value, str) or len(value) <= KEPT_CHARS:
        return value
    return f"{value[:64]}... ({len(value)} characters)"


def _dropped_note(keys: tuple[str, ...]) -> tuple[str, ...]:
    if not keys:
        return ()
    more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
    return (f"Unknown inputs were ignored: {', '.join(keys[:NAMED_KEYS])}{more}",)

"""Turns raw inputs into a `PreparedRequest`: served model, validated inputs, LoRA references and plan."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from serve.errors import FieldError, InvalidInput, NotFound, UnknownVersion
from serve.generation_plan import LORA_SCALE_FIELDS, GenerationPlan, make_plan
from serve.inputs import Inputs, validate_inputs
from serve.lora.parse_reference import parse_reference
from serve.lora.reference import InvalidReference, Reference
from serve.predictions.own_files import NO_UPLOADS, UploadedInputs
from serve.predictions.prediction import Prediction, new_id
from serve.settings import ServedModel, Settings

MAX_STORED_CHARS = 2**16
"""Longer inputs, usually images, are shortened in the record, since it is sent with every poll."""
MAX_LISTED_KEYS = 20


class ServedVersion(NamedTuple):
    model: ServedModel
    version: str


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A valid request before its input images are loaded."""

    served: ServedVersion
    raw_inputs: Mapping[str, Any]
    """As the caller sent them, without defaults."""
    inputs: Inputs
    ignored_keys: tuple[str, ...]
    plan: GenerationPlan
    """Without a size if there is an input image."""
    references: Mapping[str, Reference]
    """The LoRAs of the plan, by the input that names them."""

    def new_prediction(self, plan: GenerationPlan, at: datetime) -> Prediction:
        """The initial record, `plan` has the image size if it is already known."""
        seed = plan.seeds[0]
        inputs = {key: value for key, value in self.raw_inputs.items() if key in Inputs.model_fields}
        shortened = {key: _shorten(value) for key, value in inputs.items()}
        prediction = Prediction(
            id=new_id(),
            model=self.served.model.full_name,
            version=self.served.version,
            inputs=shortened,
            has_shortened_inputs=shortened != inputs,
            plan=plan,
            created_at=at,
            metrics={"seed": seed, "pool": plan.pool},
        )
        return prediction.with_log_lines(*_ignored_keys_line(self.ignored_keys), *plan.notes, f"Using seed: {seed}")


def prepare_request(
    raw_inputs: Mapping[str, Any],
    served: ServedVersion,
    settings: Settings,
    random_seed: int,
    uploads: UploadedInputs = NO_UPLOADS,
) -> PreparedRequest:
    """Validates and plans a request. The served model's default inputs apply where the caller gives none.

    Raises `InvalidInput`.
    """
    given = {key: value for key, value in raw_inputs.items() if value is not None}
    inputs, ignored_keys = validate_inputs(served.model.default_inputs | given, settings.max_prompt_chars)
    references, errors = _parse_references(inputs, settings, uploads)
    try:
        keys = {field: reference.key for field, reference in references.items()}
        plan = make_plan(inputs, settings, random_seed, keys)
    except InvalidInput as error:
        raise InvalidInput((*error.field_errors, *errors)) from None
    if errors:
        raise InvalidInput(errors)
    return PreparedRequest(served, raw_inputs, inputs, ignored_keys, plan, references)


def resolve_version(settings: Settings, requested: str | None) -> ServedVersion:
    """The served model for a version id, `owner/name` or `owner/name:id`; for None, the newest of the first one.

    Raises `UnknownVersion`.
    """
    if requested is None:
        return _newest(settings.served_models[0])
    for model in settings.served_models:
        if requested == model.full_name:
            return _newest(model)
        version = requested.removeprefix(f"{model.full_name}:")
        if version in model.versions:
            return ServedVersion(model, version)
    raise UnknownVersion(requested)


def resolve_model(settings: Settings, owner: str, name: str) -> ServedVersion:
    """The newest version of the model `owner/name`. Raises `NotFound`."""
    for model in settings.served_models:
        if (owner, name) == (model.owner, model.name):
            return _newest(model)
    raise NotFound(f"no model {f'{owner}/{name}'[:100]!r} is served here")


def _newest(model: ServedModel) -> ServedVersion:
    return ServedVersion(model, model.versions[0])


def _parse_references(
    inputs: Inputs, settings: Settings, uploads: UploadedInputs
) -> tuple[dict[str, Reference], tuple[FieldError, ...]]:
    """The LoRA references of the inputs by field, and the errors of `uploads` and of texts that cannot be parsed."""
    references: dict[str, Reference] = {}
    errors = list(uploads.errors)
    for field in LORA_SCALE_FIELDS:
        text = (getattr(inputs, field) or "").strip()
        if not text or any(error.field == field for error in errors):
            continue
        try:
            references[field] = uploads.loras.get(text) or parse_reference(text, settings.lora)
        except InvalidReference as error:
            errors.append(FieldError(field, str(error)))
    return references, tuple(errors)


def _shorten(value: object) -> object:
    if not isinstance(value, str) or len(value) <= MAX_STORED_CHARS:
        return value
    return f"{value[:64]}... ({len(value)} characters)"


def _ignored_keys_line(keys: tuple[str, ...]) -> tuple[str, ...]:
    if not keys:
        return ()
    more = f" and {len(keys) - MAX_LISTED_KEYS} more" if len(keys) > MAX_LISTED_KEYS else ""
    return (f"Unknown inputs were ignored: {', '.join(keys[:MAX_LISTED_KEYS])}{more}",)

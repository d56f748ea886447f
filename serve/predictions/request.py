"""Turns raw inputs into a `PreparedRequest`: served model, validated inputs, LoRA references and plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple, Self

from serve.errors import FieldError, InvalidInput, NotFound, UnknownVersion
from serve.generation_plan import LORA_SCALE_FIELDS, GenerationPlan, make_plan
from serve.inputs import Inputs, validate_inputs
from serve.lora.parse_reference import parse_reference
from serve.lora.reference import InvalidReference, Reference
from serve.predictions.create_options import NO_OPTIONS, CreateOptions, PreviewOptions
from serve.predictions.own_files import NO_UPLOADS, UploadedInputs
from serve.predictions.prediction import Prediction, new_id
from serve.settings import DeploymentSettings, ServedModel, Settings, is_same_id

MAX_STORED_CHARS = 2**16
"""Longer inputs, usually images, are shortened in the record, since it is sent with every poll."""
MAX_LISTED_KEYS = 20


class ServedVersion(NamedTuple):
    model: ServedModel
    version: str

    def rename_inputs(self, raw_inputs: Mapping[str, Any]) -> dict[str, Any]:
        """`raw_inputs` with the names of this service for those that only this model has.

        Raises `InvalidInput` if an input is given under both names.
        """
        aliases, errors = self.model.input_aliases, []
        renamed = {key: value for key, value in raw_inputs.items() if key not in aliases}
        for alias, name in aliases.items():
            if raw_inputs.get(alias) is None:
                continue
            if renamed.get(name) is not None:
                errors.append(FieldError(alias, f"is another name for {name}; give only one of them"))
            renamed[name] = raw_inputs[alias]
        if errors:
            raise InvalidInput(tuple(errors))
        return renamed


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

    def with_previews(self, options: PreviewOptions) -> Self:
        return replace(self, plan=self.plan.model_copy(update={"previews": options.count(self.plan.steps)}))

    def new_prediction(
        self, plan: GenerationPlan, at: datetime, request_id: str = "", options: CreateOptions = NO_OPTIONS
    ) -> Prediction:
        """The initial record, `plan` has the image size if it is already known."""
        seed = plan.seeds[0]
        inputs = {key: value for key, value in self.raw_inputs.items() if key in Inputs.model_fields}
        shortened = {key: _shorten(value) for key, value in inputs.items()}
        prediction = Prediction(
            id=options.id or new_id(),
            owner=options.caller.owner,
            model=self.served.model.full_name,
            version=self.served.version,
            inputs=shortened,
            has_shortened_inputs=shortened != inputs,
            plan=plan,
            webhook=options.webhook,
            upload_url=options.upload_url,
            created_at=at,
            deadline=None if options.lifetime is None else at + options.lifetime,
            request_id=request_id,
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
    references, reference_errors = _parse_references(inputs, settings, uploads)
    errors = (*_check_bounds(inputs, served.model), *reference_errors)
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
    owner_and_name, colon, version = requested.rpartition(":")
    for model in settings.served_models:
        if requested == model.full_name:
            return _newest(model)
    versions = [
        ServedVersion(model, served)
        for model in settings.served_models
        if not colon or owner_and_name == model.full_name
        for served in model.versions
    ]
    matching = match_version(version, [each.version for each in versions])
    for each in versions:
        if each.version == matching:
            return each
    raise UnknownVersion(requested)


def match_version(requested: str, served: Sequence[str]) -> str | None:
    """The id in `served` that `requested` names: the same id, or the only one of which it is the start, or vice versa.

    Only hexadecimal ids of at least `MIN_ID_DIGITS` digits may be abbreviated: clients send all 64 digits of an id of
    which Replicate's web page shows eight.
    """
    if requested in served:
        return requested
    matching = [each for each in served if is_same_id(requested, each)]
    return matching[0] if len(matching) == 1 else None


def resolve_model(settings: Settings, owner: str, name: str) -> ServedVersion:
    """The newest version of the model `owner/name`. Raises `NotFound`."""
    return _newest(resolve_model_id(settings, f"{owner}/{name}"))


def resolve_model_id(settings: Settings, model_id: str) -> ServedModel:
    """The served model with this full name, or with this name if no other has it. Raises `NotFound`."""
    for model in settings.served_models:
        if model.full_name == model_id:
            return model
    named = [model for model in settings.served_models if model.name == model_id]
    if len(named) == 1:
        return named[0]
    raise NotFound(f"no model {model_id[:100]!r} is served here; GET /v1/models lists all")


def resolve_model_version(model: ServedModel, requested: str) -> str:
    """The id of a version of `model`. Raises `NotFound`."""
    version = match_version(requested, model.versions)
    if version is None:
        raise NotFound(f"{model.full_name} has no version {requested[:100]!r}")
    return version


def find_deployment(settings: Settings, owner: str, name: str) -> DeploymentSettings:
    """Raises `NotFound`."""
    for deployment in settings.deployments:
        if (owner, name) == (deployment.owner, deployment.name):
            return deployment
    raise NotFound(f"there is no deployment {f'{owner}/{name}'[:100]!r}; GET /v1/deployments lists all")


def resolve_deployment(settings: Settings, owner: str, name: str) -> ServedVersion:
    """The model and version of a deployment. Raises `NotFound`."""
    deployment = find_deployment(settings, owner, name)
    served = _newest(resolve_model_id(settings, deployment.model))
    return served if deployment.version is None else served._replace(version=deployment.version)


def check_served_models(settings: Settings) -> None:
    """Raises ValueError if a served model's settings name an input that does not exist."""
    for model in settings.served_models:
        named = {*model.default_inputs, *model.input_aliases.values(), *model.input_bounds}
        if unknown := named - Inputs.model_fields.keys():
            raise ValueError(f"served_models: {model.full_name}: there is no input {', '.join(sorted(unknown))}")
        if taken := model.input_aliases.keys() & Inputs.model_fields.keys():
            raise ValueError(f"served_models: {model.full_name}: {', '.join(sorted(taken))} is an input, not an alias")


def default_pool(served: ServedVersion, settings: Settings) -> str:
    """The pool of a request with the default inputs of `served`."""
    inputs = {"prompt": "", **served.model.default_inputs}
    return make_plan(validate_inputs(inputs, settings.max_prompt_chars)[0], settings, random_seed=0).pool


def _newest(model: ServedModel) -> ServedVersion:
    return ServedVersion(model, model.versions[0])


def _check_bounds(inputs: Inputs, model: ServedModel) -> list[FieldError]:
    """An error for each input outside the narrower bounds of `model`."""
    errors = []
    for name, bounds in model.input_bounds.items():
        value = getattr(inputs, name)
        if value is None:
            continue
        if bounds.minimum is not None and value < bounds.minimum:
            message, kind = f"greater than or equal to {bounds.minimum:g}", "greater_than_equal"
        elif bounds.maximum is not None and value > bounds.maximum:
            message, kind = f"less than or equal to {bounds.maximum:g}", "less_than_equal"
        elif bounds.choices and value not in bounds.choices:
            message, kind = " or ".join(repr(choice) for choice in bounds.choices), "literal_error"
        else:
            continue
        errors.append(FieldError(name, f"Input should be {message} for {model.full_name}", kind))
    return errors


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

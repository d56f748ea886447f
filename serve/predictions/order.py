"""What a caller asked for, read and planned: from raw inputs to the first record. Pure; decodes and fetches nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from serve.inputs import Inputs, read_inputs
from serve.plan import Plan, make_plan
from serve.predictions.record import Prediction, new_id
from serve.predictions.versions import ServedVersion
from serve.settings import Settings

KEPT_CHARS = 2**16
"""Longer inputs, pictures as a rule, are not kept whole: a record is sent again with every poll."""
NAMED_KEYS = 20


@dataclass(frozen=True, slots=True)
class Order:
    served: ServedVersion
    given: Mapping[str, Any]
    """What the caller gave, without defaults."""
    inputs: Inputs
    dropped: tuple[str, ...]
    plan: Plan
    """Without a size while there is an input picture."""

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
        return prediction.noted(*_dropped_note(self.dropped), *plan.notes, f"Using seed: {seed}")


def read_order(raw: Mapping[str, Any], served: ServedVersion, settings: Settings, random_seed: int) -> Order:
    """The order for raw inputs, with the default inputs of the served model beneath them.

    Raises `InvalidInput`.
    """
    given = {key: value for key, value in raw.items() if value is not None}
    inputs, dropped = read_inputs(served.model.default_inputs | given, settings.max_prompt_chars)
    return Order(served, raw, inputs, dropped, make_plan(inputs, settings, random_seed))


def _kept(value: object) -> object:
    if not isinstance(value, str) or len(value) <= KEPT_CHARS:
        return value
    return f"{value[:64]}... ({len(value)} characters)"


def _dropped_note(keys: tuple[str, ...]) -> tuple[str, ...]:
    if not keys:
        return ()
    more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
    return (f"Unknown inputs were ignored: {', '.join(keys[:NAMED_KEYS])}{more}",)

"""Leases: the right of one process to run a prediction."""

from dataclasses import dataclass

from serve.predictions.prediction import Prediction


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one process to run a prediction and to change its record, until it expires."""

    prediction_id: str
    owner: str
    number: int
    """Increases each time that another process takes the prediction up."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A prediction that was taken up."""

    lease: Lease
    prediction: Prediction
    losses: int
    """How many processes or replicas were lost while they generated this prediction."""
    attached: bool
    """Whether its caller was connected to the process that was lost."""

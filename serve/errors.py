"""Every failure a caller can meet, and the HTTP answer it becomes. Imports nothing of ours.

ServiceError
├── MalformedBody            400  the body is no JSON
├── Unauthenticated    401
├── NotFound           404
├── BodyTooLarge       413
├── InvalidInput       422  inputs that can never succeed; names every faulty field at once
├── UnknownVersion     422  no served model has this version
├── PoolFull           429  come back after `retry_after_s`
├── NotReady           503  start-up is not over, or the service is stopping
└── PredictionFailed   500  an accepted prediction ended without pictures
    ├── FetchFailed         a URL of the request could not be had
    ├── InvalidImage      what was fetched is no picture we take
    ├── InvalidLora         what was fetched are no LoRA weights that fit the model
    ├── LorasTooLarge       a device has no room for the LoRAs of one prediction together
    ├── LorasMissing        between replica and engine: weights that were counted on left the device; bring them
    ├── StorageFailed       the pictures were drawn and could not be kept
    ├── AllImagesFlagged          every picture was flagged by the safety checker
    └── EngineFailed        our fault: the cause is in the log, not in the message

ModelLoadError is apart: it fails a replica's start-up, is read by operators, and has no HTTP status.

Every constructor passes all its arguments positionally to `super().__init__`: only then does an error survive pickling
between a replica and its caller. Messages are read by users: no traceback, path, address or token belongs in one.
"""

from typing import NamedTuple


class FieldError(NamedTuple):
    """One faulty input: which field, what is wrong with it, and the kind of fault as a short word for programs."""

    field: str
    message: str
    kind: str = "value_error"


class ServiceError(Exception):
    """Root of the family. `status` is the HTTP status, `title` the short name in `application/problem+json`."""

    status = 500
    title = "Internal server error"

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which asking again makes sense, or None."""
        return None


class MalformedBody(ServiceError):
    status = 400
    title = "Malformed request"


class Unauthenticated(ServiceError):
    status = 401
    title = "Unauthenticated"

    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return "You did not pass a valid authentication token"


class NotFound(ServiceError):
    status = 404
    title = "Not found"


class BodyTooLarge(ServiceError):
    status = 413
    title = "Request too large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self.limit_bytes = limit_bytes

    def __str__(self) -> str:
        return f"the request body is larger than {self.limit_bytes} bytes"


class InvalidInput(ServiceError):
    status = 422
    title = "Input validation failed"

    def __init__(self, faults: tuple[FieldError, ...]) -> None:
        super().__init__(faults)
        self.field_errors = faults

    def __str__(self) -> str:
        return "\n".join(f"- {fault.field}: {fault.message}" for fault in self.field_errors)


class UnknownVersion(ServiceError):
    status = 422
    title = "Invalid version or not permitted"

    def __init__(self, version: str) -> None:
        super().__init__(version)
        self.version = version

    def __str__(self) -> str:
        return f"no model served here has the version {self.version[:100]!r}"


class PoolFull(ServiceError):
    status = 429
    title = "Too many requests"

    def __init__(self, pool: str, retry_after: float) -> None:
        super().__init__(pool, retry_after)
        self.pool = pool
        self.retry_after = retry_after

    @property
    def retry_after_s(self) -> float:
        return self.retry_after

    def __str__(self) -> str:
        return f"the pool {self.pool!r} is full, try again in {self.retry_after:g} s"


class NotReady(ServiceError):
    status = 503
    title = "Service unavailable"


class PredictionFailed(ServiceError):
    title = "Prediction failed"


class FetchFailed(PredictionFailed):
    """`what` names the URL without its query and credentials, `why` the reason a user can act on."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what, why)
        self.what = what
        self.why = why

    def __str__(self) -> str:
        return f"could not fetch {self.what}: {self.why}"


class InvalidImage(PredictionFailed):
    """`field` is the input that held the picture, `why` the reason."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(field, why)
        self.field = field
        self.why = why

    def __str__(self) -> str:
        return f"{self.field}: {self.why}"


class InvalidLora(PredictionFailed):
    """`what` names the LoRA as its caller did, without secrets, `why` the reason a user can act on."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what, why)
        self.what = what
        self.why = why

    def __str__(self) -> str:
        return f"cannot use the LoRA {self.what}: {self.why}"


class LorasTooLarge(PredictionFailed):
    """`rank` is that of all LoRAs together, `room` how much a device of the pool has."""

    def __init__(self, rank: int, room: int) -> None:
        super().__init__(rank, room)
        self.rank = rank
        self.capacity = room

    def __str__(self) -> str:
        return (
            f"the LoRAs have a total rank of {self.rank}, at most {self.capacity} fit; use smaller LoRAs, or only one"
        )


class LorasMissing(PredictionFailed):
    """`keys` are the LoRAs that neither lie on the device nor came with the job: send it again with all of its own."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        super().__init__(keys)
        self.keys = keys

    def __str__(self) -> str:
        return "the weights of a LoRA were not at hand; send the request again"


class StorageFailed(PredictionFailed):
    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return "the picture could not be stored; the operator's log has the cause"


class AllImagesFlagged(PredictionFailed):
    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return "All generated images contained NSFW content. Try running it again with a different prompt."


class EngineFailed(PredictionFailed):
    def __init__(self, why: str = "the image engine failed; the operator's log has the cause") -> None:
        super().__init__(why)


class ModelLoadError(Exception):
    """A model cannot be loaded. `source` is what the settings name, `why` the reason and what an operator can do."""

    def __init__(self, source: str, why: str) -> None:
        super().__init__(source, why)
        self.source = source
        self.why = why

    def __str__(self) -> str:
        return f"cannot use the model {self.source}: {self.why}"


def public_error(error: BaseException) -> ServiceError | None:
    """The `ServiceError` that a caller may be shown for `error`, or None if its text must not be shown.

    An error that crossed a replica's handle is wrapped by Ray: the wrapper's text is a traceback, the original is its
    `cause`.
    """
    original = getattr(error, "cause", None)
    known = original if isinstance(original, ServiceError) else error
    return known if isinstance(known, ServiceError) else None

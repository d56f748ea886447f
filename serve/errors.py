"""Errors that callers get, with their HTTP statuses, and `ModelLoadError`.

ServiceError
├── MalformedBody      400  the body is not JSON
├── Unauthenticated    401
├── NotPermitted       403  the token's scope does not include it, or it is set by the operator only
├── InvalidLink        403  a link to a file is forged or has expired
├── NotFound           404
├── PredictionExists   409  another prediction has the id that the client chose
├── UploadTimedOut     408  an upload did not arrive within its time limit
├── BodyTimedOut       408  the body arrives too slowly, and other requests need its place
├── BodyTooLarge       413
├── UnknownEncoding    415  the body's Content-Encoding
├── InvalidInput       422  inputs that can never succeed; lists every invalid field
├── UnknownVersion     422  no served model has this version
├── IdempotencyKeyReused  422  another request had the same `Idempotency-Key`
├── PoolFull           429  retry after `retry_after_s`
├── TooManyPredictions 429  the caller's token has too many unfinished predictions
├── RateLimited        429  the caller's token sent too many requests in a minute
├── NotReady           503  the service is starting or stopping
├── IngressLost        503  the ingress died while it handled the request
├── DatabaseUnavailable  503  the database of the predictions cannot be reached
├── StorageUnavailable   503  the store of images and files cannot be reached
├── UploadsFull        507  the files that are being uploaded take all the space for files
└── PredictionFailed   500  an accepted prediction ended without images
    ├── FetchFailed           a URL of the request could not be fetched
    ├── InvalidImage          an input image cannot be decoded or is not accepted
    ├── InvalidLora           a file is not a LoRA that fits the model
    ├── LorasTooLarge         the LoRAs of one prediction do not fit on a device together
    ├── LorasMissing          weights could not be read; the runner makes up to three attempts
    ├── StorageFailed         an image or a file could not be stored
    ├── OutputUploadFailed    an image could not be sent to the caller's or the operator's URL
    ├── AllImagesFlagged      the safety checker flagged every image
    └── EngineFailed          an internal error: the log has the cause, the message does not

`ModelLoadError` is not a `ServiceError`: it fails a replica's start-up and is read by operators. `ReplicaLost` is
handled by the runner.

Every constructor passes all its arguments to `super().__init__`, since pickle calls it with `args` and errors are
pickled between a replica and its caller. Callers read the messages: they must not contain tracebacks, paths, addresses
or tokens.
"""

import math
from typing import NamedTuple


class FieldError(NamedTuple):
    """One invalid field. `kind` is a short identifier for programs, in pydantic's style."""

    field: str
    message: str
    kind: str = "value_error"


class ServiceError(Exception):
    """Base class. `status` is the HTTP status, `title` the title in `application/problem+json`."""

    status = 500
    title = "Internal server error"

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which a retry makes sense, or None."""
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


class NotPermitted(ServiceError):
    status = 403
    title = "Not permitted"


class InvalidLink(ServiceError):
    status = 403
    title = "Not permitted"

    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return "the link is not valid or has expired; get the prediction or the file again for a new link"


class NotFound(ServiceError):
    status = 404
    title = "Not found"


class PredictionExists(ServiceError):
    status = 409
    title = "Prediction exists"

    def __init__(self, prediction_id: str) -> None:
        super().__init__(prediction_id)
        self.prediction_id = prediction_id

    def __str__(self) -> str:
        return f"there is a prediction with the id {self.prediction_id}; choose another id, or send it with PUT"


class UploadTimedOut(ServiceError):
    status = 408
    title = "Request timeout"

    def __init__(self, limit_s: float) -> None:
        super().__init__(limit_s)
        self.limit_s = limit_s

    def __str__(self) -> str:
        return f"the upload did not arrive within {self.limit_s:g} s; send it again, or send a smaller file"


class BodyTimedOut(ServiceError):
    status = 408
    title = "Request timeout"

    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return "the request body did not arrive in time; send the request again, without pauses within its body"


class BodyTooLarge(ServiceError):
    status = 413
    title = "Request too large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self.limit_bytes = limit_bytes

    def __str__(self) -> str:
        return f"the request body is larger than {self.limit_bytes} bytes"


class UnknownEncoding(ServiceError):
    status = 415
    title = "Unsupported media type"

    def __init__(self, encoding: str) -> None:
        super().__init__(encoding)
        self.encoding = encoding

    def __str__(self) -> str:
        return f"Content-Encoding {self.encoding[:100]!r} is not supported; send the body with gzip, or uncompressed"


class InvalidInput(ServiceError):
    status = 422
    title = "Input validation failed"
    location: tuple[str, ...] = ("body", "input")
    """The part of the request that has the fields."""

    def __init__(self, field_errors: tuple[FieldError, ...]) -> None:
        super().__init__(field_errors)
        self.field_errors = field_errors

    def __str__(self) -> str:
        return "\n".join(f"- {error.field}: {error.message}" for error in self.field_errors)


class UnknownVersion(ServiceError):
    status = 422
    title = "Invalid version or not permitted"

    def __init__(self, version: str) -> None:
        super().__init__(version)
        self.version = version

    def __str__(self) -> str:
        return f"no model served here has the version {self.version[:100]!r}"


class IdempotencyKeyReused(ServiceError):
    status = 422
    title = "Idempotency key reused"

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"Idempotency-Key: {self.key[:100]!r} was sent with another request before; use a new key"


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
        return f"the pool {self.pool!r} is full; try again in {self.retry_after:g} s"


class TooManyPredictions(ServiceError):
    status = 429
    title = "Too many requests"

    def __init__(self, limit: int, retry_after: float) -> None:
        super().__init__(limit, retry_after)
        self.limit = limit
        self.retry_after = retry_after

    @property
    def retry_after_s(self) -> float:
        return self.retry_after

    def __str__(self) -> str:
        return (
            f"this token may have {self.limit} unfinished predictions at once; cancel one, or try again in"
            f" {self.retry_after:g} s"
        )


class RateLimited(ServiceError):
    status = 429
    title = "Too many requests"

    def __init__(self, limit: int, retry_after: float) -> None:
        super().__init__(limit, retry_after)
        self.limit = limit
        self.retry_after = retry_after

    @property
    def retry_after_s(self) -> float:
        return self.retry_after

    def __str__(self) -> str:
        return f"this token may send {self.limit} requests a minute; try again in {math.ceil(self.retry_after)} s"


class NotReady(ServiceError):
    status = 503
    title = "Service unavailable"

    @property
    def retry_after_s(self) -> float:
        return 5.0


class IngressLost(ServiceError):
    status = 503
    title = "Service unavailable"

    def __init__(self) -> None:
        super().__init__()

    @property
    def retry_after_s(self) -> float:
        return 5.0

    def __str__(self) -> str:
        return "the process that handled this request was lost; accepted predictions go on; try again in 5 s"


class DatabaseUnavailable(ServiceError):
    """`cause` is for the log: it may have addresses."""

    status = 503
    title = "Service unavailable"

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    @property
    def retry_after_s(self) -> float:
        return 5.0

    def __str__(self) -> str:
        return f"the records of predictions cannot be reached; try again in {self.retry_after_s:g} s"


class StorageUnavailable(ServiceError):
    status = 503
    title = "Service unavailable"

    def __init__(self) -> None:
        super().__init__()

    @property
    def retry_after_s(self) -> float:
        return 5.0

    def __str__(self) -> str:
        return f"stored files cannot be reached; try again in {self.retry_after_s:g} s"


class UploadsFull(ServiceError):
    status = 507
    title = "Insufficient storage"

    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return "the uploads in progress take all the space for files; try again when some of them have ended"


class PredictionFailed(ServiceError):
    title = "Prediction failed"


class FetchFailed(PredictionFailed):
    """`what` is a URL without query and credentials, or the name of a LoRA; `why` is a reason to act on.

    `field` is the input that contained the URL, if it is known.
    """

    def __init__(self, what: str, why: str, field: str | None = None) -> None:
        super().__init__(what, why, field)
        self.what = what
        self.why = why
        self.field = field

    def __str__(self) -> str:
        return _with_field(self.field, f"could not fetch {self.what}: {self.why}")


class InvalidImage(PredictionFailed):
    """`field` is the input that contained the image, `why` the reason."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(field, why)
        self.field = field
        self.why = why

    def __str__(self) -> str:
        return f"{self.field}: {self.why}"


class InvalidLora(PredictionFailed):
    """`what` is the reference's `display_name`, `why` a reason that the caller can act on.

    `field` is the input that named the LoRA, if it is known.
    """

    def __init__(self, what: str, why: str, field: str | None = None) -> None:
        super().__init__(what, why, field)
        self.what = what
        self.why = why
        self.field = field

    def __str__(self) -> str:
        return _with_field(self.field, f"cannot use the LoRA {self.what}: {self.why}")


class LorasTooLarge(PredictionFailed):
    """`rank` is the total rank of the LoRAs, `capacity` the rank that fits on a device of the pool."""

    def __init__(self, rank: int, capacity: int) -> None:
        super().__init__(rank, capacity)
        self.rank = rank
        self.capacity = capacity

    def __str__(self) -> str:
        return (
            f"the LoRAs have a total rank of {self.rank}, at most {self.capacity} fit; use smaller LoRAs, or only one"
        )


class LorasMissing(PredictionFailed):
    """`keys` are the keys of weights that could not be read, or that are neither on the device nor in the request."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        super().__init__(keys)
        self.keys = keys

    def __str__(self) -> str:
        return "the weights of a LoRA were lost; send the request again"


class StorageFailed(PredictionFailed):
    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return "the content could not be stored; the operator's log has the cause"


class OutputUploadFailed(PredictionFailed):
    """`why` is a reason to act on."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"an image could not be uploaded: {self.why}"


class AllImagesFlagged(PredictionFailed):
    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return "All generated images contained NSFW content. Try running it again with a different prompt."


class EngineFailed(PredictionFailed):
    def __init__(self, why: str = "the image engine failed; the operator's log has the cause") -> None:
        super().__init__(why)


class ReplicaLost(Exception):
    """A replica died or fell silent while it ran a prediction; another one can generate the same images.

    `started` says whether it had begun to generate them.
    """

    def __init__(self, started: bool) -> None:
        super().__init__(started)
        self.started = started


class ModelLoadError(Exception):
    """A model cannot be loaded. `source` is its source in the settings, `why` says what the operator can do."""

    def __init__(self, source: str, why: str) -> None:
        super().__init__(source, why)
        self.source = source
        self.why = why

    def __str__(self) -> str:
        return f"cannot load the model {self.source}: {self.why}"


def public_error(error: BaseException) -> ServiceError | None:
    """The `ServiceError` that a caller may be shown for `error`, or None if its text must not be shown.

    An error that crossed a replica's handle is wrapped by Ray: the wrapper's text is a traceback, the original is its
    `cause`.
    """
    original = getattr(error, "cause", None)
    unwrapped = original if isinstance(original, ServiceError) else error
    return unwrapped if isinstance(unwrapped, ServiceError) else None


def _with_field(field: str | None, message: str) -> str:
    return message if field is None else f"{field}: {message}"

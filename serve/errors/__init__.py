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

from serve.errors.base import (
    FieldError,
    ServiceError,
)
from serve.errors.failures import (
    AllImagesFlagged,
    EngineFailed,
    FetchFailed,
    InvalidImage,
    InvalidLora,
    LorasMissing,
    LorasTooLarge,
    OutputUploadFailed,
    PredictionFailed,
    StorageFailed,
)
from serve.errors.refusals import (
    BodyTimedOut,
    BodyTooLarge,
    IdempotencyKeyReused,
    InvalidInput,
    InvalidLink,
    MalformedBody,
    NotFound,
    NotPermitted,
    PoolFull,
    PredictionExists,
    RateLimited,
    TooManyPredictions,
    Unauthenticated,
    UnknownEncoding,
    UnknownVersion,
    UploadsFull,
    UploadTimedOut,
)
from serve.errors.unavailable import (
    DatabaseUnavailable,
    IngressLost,
    NotReady,
    StorageUnavailable,
)

__all__ = [
    "AllImagesFlagged",
    "BodyTimedOut",
    "BodyTooLarge",
    "DatabaseUnavailable",
    "EngineFailed",
    "FetchFailed",
    "FieldError",
    "IdempotencyKeyReused",
    "IngressLost",
    "InvalidImage",
    "InvalidInput",
    "InvalidLink",
    "InvalidLora",
    "LorasMissing",
    "LorasTooLarge",
    "MalformedBody",
    "ModelLoadError",
    "NotFound",
    "NotPermitted",
    "NotReady",
    "OutputUploadFailed",
    "PoolFull",
    "PredictionExists",
    "PredictionFailed",
    "RateLimited",
    "ReplicaLost",
    "ServiceError",
    "StorageFailed",
    "StorageUnavailable",
    "TooManyPredictions",
    "Unauthenticated",
    "UnknownEncoding",
    "UnknownVersion",
    "UploadTimedOut",
    "UploadsFull",
    "public_error",
]


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

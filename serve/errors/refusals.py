"""Errors of requests that are refused until the caller changes them, or sends fewer of them."""

import math

from serve.errors.base import FieldError, ServiceError


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

    def __init__(self, pool: str, retry_after_s: float) -> None:
        super().__init__(pool, retry_after_s)
        self.pool = pool
        self.retry_after_s: float = retry_after_s

    def __str__(self) -> str:
        return f"the pool {self.pool!r} is full; try again in {self.retry_after_s:g} s"


class TooManyPredictions(ServiceError):
    status = 429
    title = "Too many requests"

    def __init__(self, limit: int, retry_after_s: float) -> None:
        super().__init__(limit, retry_after_s)
        self.limit = limit
        self.retry_after_s: float = retry_after_s

    def __str__(self) -> str:
        return (
            f"this token may have {self.limit} unfinished predictions at once; cancel one, or try again in"
            f" {self.retry_after_s:g} s"
        )


class RateLimited(ServiceError):
    status = 429
    title = "Too many requests"

    def __init__(self, limit: int, retry_after_s: float) -> None:
        super().__init__(limit, retry_after_s)
        self.limit = limit
        self.retry_after_s: float = retry_after_s

    def __str__(self) -> str:
        return f"this token may send {self.limit} requests a minute; try again in {math.ceil(self.retry_after_s)} s"


class UploadsFull(ServiceError):
    status = 507
    title = "Insufficient storage"

    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return "the uploads in progress take all the space for files; try again when some of them have ended"

"""Errors of requests that succeed later: the service, its database or its storage is away."""

from serve.errors.base import ServiceError

RETRY_AFTER_S = 5.0


class NotReady(ServiceError):
    status = 503
    title = "Service unavailable"
    retry_after_s = RETRY_AFTER_S


class IngressLost(ServiceError):
    status = 503
    title = "Service unavailable"
    retry_after_s = RETRY_AFTER_S

    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return "the process that handled this request was lost; accepted predictions go on; try again in 5 s"


class DatabaseUnavailable(ServiceError):
    """`cause` is for the log: it may have addresses."""

    status = 503
    title = "Service unavailable"
    retry_after_s = RETRY_AFTER_S

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return f"the records of predictions cannot be reached; try again in {self.retry_after_s:g} s"


class StorageUnavailable(ServiceError):
    status = 503
    title = "Service unavailable"
    retry_after_s = RETRY_AFTER_S

    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return f"stored files cannot be reached; try again in {self.retry_after_s:g} s"

"""Errors of accepted predictions that end without images."""

from serve.errors.base import ServiceError


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


def _with_field(field: str | None, message: str) -> str:
    return message if field is None else f"{field}: {message}"

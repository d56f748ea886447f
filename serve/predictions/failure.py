"""What a caller is told of an error. Knows no face: the same sentence goes into a record and into an answer."""

from serve.errors import ServiceError


def told(error: BaseException) -> ServiceError | None:
    """The error of `serve.errors` that this is, or None for one whose text must not be seen.

    An error that came through a replica's handle is wrapped: the wrapper is of our class too, but its text is a
    traceback with an address in it, and the original is its `cause`.
    """
    original = getattr(error, "cause", None)
    known = original if isinstance(original, ServiceError) else error
    return known if isinstance(known, ServiceError) else None

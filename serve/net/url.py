"""Reads URLs from callers and formats them for messages without their secrets."""

import httpx

SHOWN_CHARS = 200
UNREADABLE = "the URL"


class InvalidUrl(ValueError):
    """The text is no URL that is fetched; the message says why."""


def parse_url(text: str, origin: httpx.URL | None = None) -> httpx.URL:
    """The URL in `text`, which may be relative to `origin`. Raises `InvalidUrl`."""
    try:
        url = httpx.URL(text.strip())
        url = url if origin is None else origin.join(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise InvalidUrl("it is not a valid URL") from error
    if url.scheme not in ("http", "https"):
        raise InvalidUrl("only http and https URLs are fetched")
    if not url.host.strip("."):
        raise InvalidUrl("it names no host")
    if url.userinfo:
        raise InvalidUrl("a user name or password in a URL is not taken, leave it out")
    if url.port is not None and not 0 < url.port < 2**16:
        raise InvalidUrl("its port is not between 1 and 65535")
    # With a closing dot a name means the same, but no certificate is made out to it.
    return url.copy_with(host=url.host.rstrip("."), fragment=None)


def display_url(text: str | httpx.URL) -> str:
    """`text` for a message: no user, password, query or fragment, and not endless."""
    try:
        url = httpx.URL(text.strip()) if isinstance(text, str) else text
    except (httpx.InvalidURL, ValueError):
        return UNREADABLE
    if not url.host:
        return UNREADABLE
    bare = f"{url.scheme}://{url.netloc.decode('ascii')}{url.raw_path.partition(b'?')[0].decode('ascii')}"
    return bare if len(bare) <= SHOWN_CHARS else bare[: SHOWN_CHARS - 3] + "..."

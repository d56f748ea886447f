"""Parses URLs from callers, and formats them for messages without their secrets."""

import httpx

MAX_DISPLAY_CHARS = 200
UNPARSABLE = "the URL"


class InvalidUrl(ValueError):
    """The text is not a URL that can be fetched; the message gives the reason."""


def parse_url(text: str, base: httpx.URL | None = None) -> httpx.URL:
    """Parses an http(s) URL, which may be relative to `base`, and removes its fragment. Raises `InvalidUrl`."""
    try:
        url = httpx.URL(text.strip())
        url = url if base is None else base.join(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise InvalidUrl("it is not a valid URL") from error
    if url.scheme not in ("http", "https"):
        raise InvalidUrl("only http and https URLs are accepted")
    if not url.host.strip("."):
        raise InvalidUrl("it has no host")
    if url.userinfo:
        raise InvalidUrl("a user name or password in a URL is not accepted; remove it")
    if url.port is not None and not 0 < url.port < 2**16:
        raise InvalidUrl("its port is not between 1 and 65535")
    # A trailing dot does not change which host is meant, but TLS certificates do not have it.
    return url.copy_with(host=url.host.rstrip("."), fragment=None)


def display_url(text: str | httpx.URL) -> str:
    """Formats a URL for a message: without user, password, query and fragment, and at most 200 characters long."""
    try:
        url = httpx.URL(text.strip()) if isinstance(text, str) else text
    except (httpx.InvalidURL, ValueError):
        return UNPARSABLE
    if not url.host:
        return UNPARSABLE
    shown = f"{url.scheme}://{url.netloc.decode('ascii')}{url.raw_path.partition(b'?')[0].decode('ascii')}"
    return shown if len(shown) <= MAX_DISPLAY_CHARS else shown[: MAX_DISPLAY_CHARS - 3] + "..."

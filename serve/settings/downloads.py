"""Limits on downloads from URLs in requests."""

from typing import Annotated

from pydantic import Field

from serve.settings.base import Positive, Seconds, StrictModel


class FetchSettings(StrictModel):
    """Limits on downloads from URLs in requests."""

    max_bytes: Positive = 64 * 2**20
    connect_timeout_s: Seconds = 5
    read_timeout_s: Seconds = 15
    total_timeout_s: Seconds = 60
    max_redirects: Annotated[int, Field(ge=0)] = 5
    max_attempts: Positive = 3
    """Attempts in total. Only failed connections, 429 and 5xx are retried."""
    backoff_s: Seconds = 0.5
    """Pause before the second attempt. It doubles with each further attempt, and up to half of it is cut at random."""
    max_concurrent: Positive = 16
    allowed_hosts: tuple[str, ...] = ()
    """Hosts, or `host:port`, from which downloads are allowed although their addresses are not public."""

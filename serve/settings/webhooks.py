"""Settings of webhooks."""

from serve.settings.base import Positive, Seconds, StrictModel
from serve.settings.downloads import FetchSettings


class WebhookSettings(StrictModel):
    """Requests to the webhooks of callers."""

    connect_timeout_s: Seconds = 5
    total_timeout_s: Seconds = 10
    """Time in which a receiver must answer, the connection included."""
    max_concurrent: Positive = 128
    """Requests that one ingress sends at once."""
    max_concurrent_per_host: Positive = 8
    """So that a receiver that does not answer delays no other one."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts, or `host:port`, to which webhooks may be sent although their addresses are not public."""
    dead_max_age_s: Seconds = 7 * 24 * 3600
    """How long an operator can replay a webhook that could not be delivered."""

    @property
    def http(self) -> FetchSettings:
        """The settings of the HTTP client."""
        return FetchSettings(
            connect_timeout_s=self.connect_timeout_s,
            read_timeout_s=self.total_timeout_s,
            max_concurrent=self.max_concurrent,
            allowed_hosts=self.allowed_hosts,
        )

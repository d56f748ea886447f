"""Hosts of LoRAs: their URLs, credentials and error messages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import FORBIDDEN, NOT_FOUND, UNAUTHORIZED

import httpx
from pydantic import SecretStr

from serve.net.http_client import origin
from serve.settings import ENVIRONMENT_VARIABLES, LoraSettings, Secrets


@dataclass(frozen=True, slots=True)
class Provider:
    """One host. What has no `token_variable` is read without signing in."""

    name: str
    base_url: str = ""
    token_variable: str | None = None
    token: SecretStr | None = None
    error_meanings: Mapping[str, str] = field(default_factory=dict)
    """What the site's own words for a refusal, in its header `x-error-code`, mean."""

    def auth_headers(self, url: httpx.URL) -> dict[str, str]:
        """The header that signs in at `url`; empty for what is not on this site, and without a credential."""
        if not self.token or origin(url) != origin(httpx.URL(self.base_url)):
            return {}
        return {"Authorization": f"Bearer {self.token.get_secret_value()}"}

    @property
    def sign_in_hint(self) -> str:
        """What to do where an account is needed."""
        if not self.token_variable:
            return "it must be readable without signing in"
        if not self.token:
            return f"it needs an account at {self.name}: the operator of this service can set {self.token_variable}"
        return f"the account of this service's {self.token_variable} may not read it"

    def hint(self, status: int, headers: httpx.Headers) -> str:
        """What to do about a refusal; empty where nobody knows."""
        meaning = self.error_meanings.get(headers.get("x-error-code", ""))
        if status in (UNAUTHORIZED, FORBIDDEN):
            return f"{meaning}; {self.sign_in_hint}" if meaning else self.sign_in_hint
        if status == NOT_FOUND:
            return meaning or "check how it is written"
        return ""


_HUB_MEANINGS = {
    "GatedRepo": "the repository is gated, its terms must be accepted on its page",
    "RepoNotFound": "there is no such repository, or it is private",
    "RevisionNotFound": "the repository has no such revision",
    "EntryNotFound": "the repository has no such file",
}
ANY_HOST = Provider("its server")
"""Any host, without a credential."""


@dataclass(frozen=True, slots=True)
class Providers:
    replicate: Provider
    hub: Provider
    civitai: Provider

    @classmethod
    def of(cls, settings: LoraSettings, secrets: Secrets) -> "Providers":
        """As the settings place them, with the credentials that there are."""
        return cls(
            Provider(
                "Replicate", settings.replicate_url, ENVIRONMENT_VARIABLES["replicate_token"], secrets.replicate_token
            ),
            Provider(
                "Hugging Face",
                settings.huggingface_url,
                ENVIRONMENT_VARIABLES["hf_token"],
                secrets.hf_token,
                _HUB_MEANINGS,
            ),
            Provider("CivitAI", settings.civitai_url, ENVIRONMENT_VARIABLES["civitai_token"], secrets.civitai_token),
        )


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a site."""

    url: str
    provider: Provider
    """Who is asked: whose credential goes along, and what its refusals mean."""
    sha256: str | None = None
    """What the site says that the bytes hash to, in lower case."""


@dataclass(frozen=True, slots=True)
class ResolvedFile:
    """The file that a reference means now."""

    file: RemoteFile
    revision: str | None = None
    """Names the content; None where only its server can tell, by the tag of the download."""
    config: RemoteFile | None = None
    """PEFT's configuration beside the weights."""

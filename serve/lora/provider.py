"""Hosts of LoRAs: their URLs, credentials and error messages."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http.client import FORBIDDEN, NOT_FOUND, UNAUTHORIZED

import httpx
from pydantic import SecretStr

from serve.net.http_client import origin
from serve.settings import ENVIRONMENT_VARIABLES, LoraSettings, Secrets

_HUGGING_FACE_ERRORS = {
    "GatedRepo": "the repository is gated; accept its terms on its page",
    "RepoNotFound": "the repository does not exist, or it is private",
    "RevisionNotFound": "the repository has no such revision",
    "EntryNotFound": "the repository has no such file",
}


@dataclass(frozen=True, slots=True)
class Provider:
    """A host of LoRA files. Requests to one without `token_variable` are not authenticated."""

    name: str
    base_url: str = ""
    """Without a slash at the end."""
    token_variable: str | None = None
    """The environment variable that sets `token`."""
    token: SecretStr | None = None
    error_codes: Mapping[str, str] = field(default_factory=dict)
    """Explains the values of the response header `x-error-code`."""
    is_callers_token: bool = False
    """Whether the caller's reference contains `token`, instead of the environment of this service."""

    def auth_headers(self, url: httpx.URL) -> dict[str, str]:
        """The Authorization header for `url`; empty without a token, and for any other origin than `base_url`."""
        if not self.token or origin(url) != origin(httpx.URL(self.base_url)):
            return {}
        return {"Authorization": f"Bearer {self.token.get_secret_value()}"}

    def with_callers_token(self, token: str) -> "Provider":
        return replace(self, token=SecretStr(token), is_callers_token=True)

    @property
    def auth_hint(self) -> str:
        """What to do when the provider requires authentication."""
        if self.is_callers_token:
            return f"the token in the reference is not valid, or its {self.name} account has no access"
        if not self.token_variable:
            return "the file must be readable without authentication"
        if not self.token:
            return f"it needs a {self.name} account; the operator of this service can set {self.token_variable}"
        return f"the {self.token_variable} of this service has no access to it"

    def error_hint(self, status: int, headers: httpx.Headers) -> str:
        """What to do about an error response; empty if there is nothing useful to say."""
        reason = self.error_codes.get(headers.get("x-error-code", ""))
        if status in (UNAUTHORIZED, FORBIDDEN):
            return f"{reason}; {self.auth_hint}" if reason else self.auth_hint
        if status == NOT_FOUND:
            return reason or "check the spelling"
        return ""


ANY_HOST = Provider("its server")
"""Any host, without authentication."""


@dataclass(frozen=True, slots=True)
class Providers:
    replicate: Provider
    hub: Provider
    civitai: Provider

    @classmethod
    def from_settings(cls, settings: LoraSettings, secrets: Secrets) -> "Providers":
        return cls(
            replicate=Provider(
                "Replicate",
                settings.replicate_url.rstrip("/"),
                ENVIRONMENT_VARIABLES["replicate_token"],
                secrets.replicate_token,
            ),
            hub=Provider(
                "Hugging Face",
                settings.huggingface_url.rstrip("/"),
                ENVIRONMENT_VARIABLES["hf_token"],
                secrets.hf_token,
                _HUGGING_FACE_ERRORS,
            ),
            civitai=Provider(
                "CivitAI",
                settings.civitai_url.rstrip("/"),
                ENVIRONMENT_VARIABLES["civitai_token"],
                secrets.civitai_token,
            ),
        )


@dataclass(frozen=True, slots=True)
class RemoteFile:
    url: str
    provider: Provider
    """Supplies the credentials for the request and explains its errors."""
    sha256: str | None = None
    """The checksum that the provider publishes, in lower case."""


@dataclass(frozen=True, slots=True)
class ResolvedFile:
    """The file that a reference currently resolves to."""

    file: RemoteFile
    revision: str | None = None
    """Identifies the content; None if only the ETag of the download does."""
    config: RemoteFile | None = None
    """PEFT's `adapter_config.json` next to the weights."""

"""Secrets, folders and other values of the environment. No other module reads or changes it."""

import os
from collections.abc import Mapping, MutableMapping
from importlib.metadata import version
from pathlib import Path

from pydantic import SecretStr

from serve.settings.base import StrictModel
from serve.settings.root import Settings


class Secrets(StrictModel):
    """Secrets, read from the environment because they must not be in a config file."""

    api_token: SecretStr | None = None
    """Required from clients on every path."""
    hf_token: SecretStr | None = None
    """For gated Hugging Face repositories."""
    civitai_token: SecretStr | None = None
    """For CivitAI downloads that need an account."""
    replicate_token: SecretStr | None = None
    """For private models on Replicate."""


ENVIRONMENT_VARIABLES = {
    "api_token": "FLUX_SERVE_TOKEN",
    "hf_token": "HF_TOKEN",
    "civitai_token": "CIVITAI_API_TOKEN",
    "replicate_token": "REPLICATE_API_TOKEN",
}
"""The environment variable for each field of `Secrets`."""


def read_secrets(environment: Mapping[str, str] = os.environ) -> Secrets:
    """The secrets in `ENVIRONMENT_VARIABLES`; an empty variable counts as unset."""
    values = {field: environment.get(variable) for field, variable in ENVIRONMENT_VARIABLES.items()}
    return Secrets.model_validate({field: value for field, value in values.items() if value})


def cache_folder(settings: Settings, environment: Mapping[str, str] = os.environ) -> Path:
    """The setting `cache_folder`, or else `flux-serve` in the user's cache folder, by the XDG convention."""
    if settings.cache_folder is not None:
        return settings.cache_folder
    base = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "/tmp")) / ".cache"
    return Path(base) / "flux-serve"


def state_folder(settings: Settings, port: int, environment: Mapping[str, str] = os.environ) -> Path:
    """The setting `state_folder`, or else one for the service's port in the user's state folder, as XDG says."""
    if settings.state_folder is not None:
        return settings.state_folder
    base = environment.get("XDG_STATE_HOME") or Path(environment.get("HOME", "/tmp")) / ".local" / "state"
    return Path(base) / "flux-serve" / f"port-{port}"


def database_url(settings: Settings, port: int) -> str:
    """The setting `database_url`, or else that of a file in the state folder."""
    return settings.database_url or f"sqlite:///{state_folder(settings, port) / 'predictions.db'}"


def use_compile_cache(settings: Settings, environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes torch's compiler keep its results in the cache folder, where other replicas of this node find them.

    Call it before torch is imported. The results are keyed by the GPU, the code and the sizes; torch's version, which
    does the keying, is in the folder's name.
    """
    folder = cache_folder(settings) / "compiled" / f"torch-{version('torch')}"
    environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def use_proxy_middleware(environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes Serve's proxies use `serve.http_proxy`. Call it before Ray starts."""
    environment.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve.http_proxy:proxy_middleware")


def use_slow_control_loop(environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes Serve's controller work twice a second. By default it does ten times, which takes 8 % of a core while idle.

    Call it before Ray starts.
    """
    environment.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.5")


def exports_traces(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether OpenTelemetry's variables name an exporter: an OTLP endpoint, or `OTEL_TRACES_EXPORTER=otlp`."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return exporter == "otlp" or (not exporter and any(environment.get(name) for name in endpoints))


def uses_ray_token(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process's Ray cluster asks for Ray's token; Ray itself sets the variable when it starts."""
    return environment.get("RAY_AUTH_MODE", "").lower() == "token"

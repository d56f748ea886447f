"""All settings, as immutable pydantic models that reject unknown keys, and the secrets from the environment.

Other code imports them from this package. `serve_config.yaml` has the production settings.
"""

from serve.settings.base import Device, LogFormat
from serve.settings.cog import CogSettings
from serve.settings.downloads import FetchSettings
from serve.settings.environment import (
    ENVIRONMENT_VARIABLES,
    Secrets,
    cache_folder,
    database_url,
    exports_traces,
    read_secrets,
    state_folder,
    use_compile_cache,
    use_proxy_middleware,
    use_slow_control_loop,
    uses_ray_token,
)
from serve.settings.loras import LoraCacheSettings, LoraFetchSettings, LoraSettings
from serve.settings.models import DeploymentSettings, InputBounds, ModelSettings, ServedModel, is_same_id
from serve.settings.openai import OpenAiSettings
from serve.settings.pools import (
    AttentionKernel,
    CompiledPart,
    Dtype,
    Dtypes,
    Fp8Kernel,
    LoraProduct,
    PoolSettings,
    Precision,
    Scaling,
    SchedulingPolicy,
)
from serve.settings.root import Settings
from serve.settings.safety import SafetySettings
from serve.settings.shared_state import unshared_state
from serve.settings.storage import FileSettings, OutputSettings
from serve.settings.webhooks import WebhookSettings

__all__ = [
    "ENVIRONMENT_VARIABLES",
    "AttentionKernel",
    "CogSettings",
    "CompiledPart",
    "DeploymentSettings",
    "Device",
    "Dtype",
    "Dtypes",
    "FetchSettings",
    "FileSettings",
    "Fp8Kernel",
    "InputBounds",
    "LogFormat",
    "LoraCacheSettings",
    "LoraFetchSettings",
    "LoraProduct",
    "LoraSettings",
    "ModelSettings",
    "OpenAiSettings",
    "OutputSettings",
    "PoolSettings",
    "Precision",
    "SafetySettings",
    "Scaling",
    "SchedulingPolicy",
    "Secrets",
    "ServedModel",
    "Settings",
    "WebhookSettings",
    "cache_folder",
    "database_url",
    "exports_traces",
    "is_same_id",
    "read_secrets",
    "state_folder",
    "unshared_state",
    "use_compile_cache",
    "use_proxy_middleware",
    "use_slow_control_loop",
    "uses_ray_token",
]

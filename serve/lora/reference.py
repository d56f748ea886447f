"""LoRA references and resolved LoRAs."""

import hashlib
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

from serve.model_specs import EMBEDDED
from serve.net.url import display_url as shown_url

COMMIT = re.compile(r"[0-9a-f]{40}")


class InvalidReference(ValueError):
    """A text names no LoRA; the message says why and what does, fit for a user."""


class Reference(ABC):
    """Names one LoRA. Equal references have equal keys."""

    __slots__ = ()

    @property
    @abstractmethod
    def _canonical(self) -> str:
        """All that tells it from other references, secrets included."""

    @property
    @abstractmethod
    def display_name(self) -> str:
        """The shortest text that names it to a user, without secrets."""

    @property
    @abstractmethod
    def may_change(self) -> bool:
        """Whether the same reference can mean other weights at another time."""

    @property
    def key(self) -> str:
        """Names it in caches: 64 hexadecimal digits."""
        return hashlib.sha256(f"{type(self).__name__} {self._canonical}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ReplicateModel(Reference):
    """The weights of a fine-tune on Replicate."""

    owner: str
    name: str
    version: str | None = None
    """None for the newest."""

    @property
    def _canonical(self) -> str:
        return self.display_name

    @property
    def display_name(self) -> str:
        return f"{self.owner}/{self.name}{f':{self.version}' if self.version else ''}"

    @property
    def may_change(self) -> bool:
        return self.version is None


@dataclass(frozen=True, slots=True)
class HubFile(Reference):
    """A file in a model repository of the Hugging Face hub."""

    repository: str
    """`owner/name`."""
    revision: str = "main"
    """Branch, tag or commit."""
    path: str = ""
    """A file, or a folder that holds one weights file; empty for the whole repository."""

    @property
    def _canonical(self) -> str:
        return self.display_name

    @property
    def display_name(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"huggingface.co/{self.repository}{revision}{f'/{self.path}' if self.path else ''}"

    @property
    def may_change(self) -> bool:
        return COMMIT.fullmatch(self.revision) is None


@dataclass(frozen=True, slots=True)
class CivitaiFile(Reference):
    """A file of a model on CivitAI: of its newest version, or of the version, which then says all."""

    model: int | None = None
    version: int | None = None
    choice: tuple[tuple[str, str], ...] = ()
    """What was said about the file where a version has several: `size` and `fp`, in lower case."""
    token: str | None = field(default=None, repr=False)
    """The caller's own, for downloads that need an account."""

    @property
    def _canonical(self) -> str:
        # Who has no token must not be served from the cache what needs one.
        return f"{self.display_name} {self.token or ''}"

    @property
    def display_name(self) -> str:
        site = f"civitai.com/model-versions/{self.version}" if self.version else f"civitai:{self.model}"
        return site + "".join(f" {name}={value}" for name, value in self.choice)

    @property
    def may_change(self) -> bool:
        return self.version is None


@dataclass(frozen=True, slots=True)
class UrlFile(Reference):
    """A file at any URL, which may have a signature in its query."""

    url: str = field(repr=False)

    @property
    def _canonical(self) -> str:
        return self.url

    @property
    def display_name(self) -> str:
        return shown_url(self.url)

    @property
    def may_change(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class S3Object(Reference):
    bucket: str
    name: str

    @property
    def _canonical(self) -> str:
        return self.display_name

    @property
    def display_name(self) -> str:
        return f"s3://{self.bucket}/{self.name}"

    @property
    def may_change(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class EmbeddedLora(Reference):
    """One that comes along with the project, for the embedded model."""

    name: str

    @property
    def _canonical(self) -> str:
        return self.name

    @property
    def display_name(self) -> str:
        return f"{EMBEDDED}:{self.name}"

    @property
    def may_change(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class LocalFile(Reference):
    """A file in one of the folders that the settings name. Whether a link leads out of it, is not known here."""

    path: Path

    @property
    def _canonical(self) -> str:
        return str(self.path)

    @property
    def display_name(self) -> str:
        return self.path.name

    @property
    def may_change(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class InlineFile(Reference):
    """A file that came in a `data:` URI."""

    content: bytes = field(repr=False)

    @property
    def _canonical(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def display_name(self) -> str:
        return "data:"

    @property
    def may_change(self) -> bool:
        return False


BlockRefT = TypeVar("BlockRefT")

Origin = Literal["download", "disk", "memory"]


@dataclass(frozen=True, slots=True)
class LoraMetadata:
    """What is known of the weights of a LoRA beside the weights themselves."""

    key: str
    """Names the content for good: 64 hexadecimal digits. Equal weights have equal keys, wherever they came from."""
    size_bytes: int
    """As they are drawn with, after conversion."""
    rank: int
    unapplied: tuple[str, ...] = ()
    """Tensors of the file that are not applied, each with the reason, fit to be shown to the caller."""


@dataclass(frozen=True, slots=True)
class CacheHandle(Generic[BlockRefT]):
    """The weights in memory, as a block of `serve.lora.weights`."""

    block: BlockRefT
    """Where they lie."""
    id: str
    """Tells it from a later copy of the same."""


@dataclass(frozen=True, slots=True)
class ResolvedLora(Generic[BlockRefT]):
    metadata: LoraMetadata
    handle: CacheHandle[BlockRefT]
    origin: Origin
    """Where they came from for this request."""
    fetched_bytes: int = 0
    """What was downloaded for this request, before conversion."""
    fetch_s: float = 0.0
    check_s: float = 0.0
    stale: bool = False
    """They are older than they may be, but where they came from could not be asked again."""

    def as_memory_hit(self) -> "ResolvedLora[BlockRefT]":
        """The same for a request that finds it in memory."""
        return replace(self, origin="memory", fetched_bytes=0, fetch_s=0.0, check_s=0.0, stale=False)

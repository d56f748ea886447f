"""LoRA references: the ways in which a LoRA can be named."""

import hashlib
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

from serve.model_specs import EMBEDDED
from serve.net.url import display_url

_COMMIT_HASH = re.compile(r"[0-9a-f]{40}")


class InvalidReference(ValueError):
    """The text is not a LoRA reference. The message is meant for the caller and lists what is accepted."""


class Reference(ABC):
    """Identifies one LoRA. Equal references have equal keys."""

    __slots__ = ()

    @property
    @abstractmethod
    def _canonical(self) -> str:
        """Everything that distinguishes this reference from others of its class, secrets included."""

    @property
    @abstractmethod
    def display_name(self) -> str:
        """A short name for messages and logs, without secrets."""

    @property
    @abstractmethod
    def may_change(self) -> bool:
        """Whether this reference may resolve to other weights later."""

    @property
    def key(self) -> str:
        """Cache key: 64 hexadecimal digits."""
        return hashlib.sha256(f"{type(self).__name__} {self._canonical}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ReplicateModel(Reference):
    """The weights of a fine-tuned model on Replicate."""

    owner: str
    name: str
    version: str | None = None
    """None means the newest version."""

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
    """A file in a model repository on the Hugging Face Hub."""

    repository: str
    """`owner/name`."""
    revision: str = "main"
    """Branch, tag or commit."""
    path: str = ""
    """A file, or a folder with one weights file; empty means the whole repository."""

    @property
    def _canonical(self) -> str:
        return self.display_name

    @property
    def display_name(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"huggingface.co/{self.repository}{revision}{f'/{self.path}' if self.path else ''}"

    @property
    def may_change(self) -> bool:
        return _COMMIT_HASH.fullmatch(self.revision) is None


@dataclass(frozen=True, slots=True)
class CivitaiFile(Reference):
    """A file of a CivitAI model. With `version`, `model` is not needed; else the newest one for FLUX.1 is used."""

    model: int | None = None
    version: int | None = None
    filters: tuple[tuple[str, str], ...] = ()
    """Selects one of several files in a version: pairs of `fp` or `size` and a lower-case value."""
    token: str | None = field(default=None, repr=False)
    """The caller's own API token, for downloads that need an account."""

    @property
    def _canonical(self) -> str:
        # The token is part of the key: a caller without it must not get the file from the cache.
        return f"{self.display_name} {self.token or ''}"

    @property
    def display_name(self) -> str:
        base = f"civitai.com/model-versions/{self.version}" if self.version else f"civitai:{self.model}"
        return base + "".join(f" {name}={value}" for name, value in self.filters)

    @property
    def may_change(self) -> bool:
        return self.version is None


@dataclass(frozen=True, slots=True)
class UrlFile(Reference):
    """A file at any URL. The query may contain a signature, which is a secret."""

    url: str = field(repr=False)

    @property
    def _canonical(self) -> str:
        return self.url

    @property
    def display_name(self) -> str:
        return display_url(self.url)

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
    """A LoRA that is part of this project, made for the embedded model."""

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
    """A file in one of the folders in `lora.folders`. Symbolic links are checked when the file is fetched."""

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
    """The content of a `data:` URI."""

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


@dataclass(frozen=True, slots=True)
class ArchiveMember(Reference):
    """One of several weights files in an archive."""

    archive: Reference
    path: str
    """Compared with the paths in the archive; never used as a path on disk."""

    @property
    def _canonical(self) -> str:
        return f"{self.archive.key} {self.path}"

    @property
    def display_name(self) -> str:
        return f"{self.archive.display_name}#{self.path}"

    @property
    def may_change(self) -> bool:
        return self.archive.may_change

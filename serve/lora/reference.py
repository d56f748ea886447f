"""What a caller's text names: one frozen value for all spellings of the same LoRA, by the kind of place it lies in.

Values only: nothing is looked up, and no address is built here. `key` and `repr` carry no secret; a text that a user
sees is `shown`.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

from serve.embedded import EMBEDDED
from serve.media.url import shown as shown_url

COMMIT = re.compile(r"[0-9a-f]{40}")


class BadReference(ValueError):
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
    def shown(self) -> str:
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
        return self.shown

    @property
    def shown(self) -> str:
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
        return self.shown

    @property
    def shown(self) -> str:
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
        return f"{self.shown} {self.token or ''}"

    @property
    def shown(self) -> str:
        site = f"civitai.com/model-versions/{self.version}" if self.version else f"civitai:{self.model}"
        return site + "".join(f" {name}={value}" for name, value in self.choice)

    @property
    def may_change(self) -> bool:
        return self.version is None


@dataclass(frozen=True, slots=True)
class WebFile(Reference):
    """A file at any URL, which may have a signature in its query."""

    url: str = field(repr=False)

    @property
    def _canonical(self) -> str:
        return self.url

    @property
    def shown(self) -> str:
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
        return self.shown

    @property
    def shown(self) -> str:
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
    def shown(self) -> str:
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
    def shown(self) -> str:
        return self.path.name

    @property
    def may_change(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Enclosed(Reference):
    """A file that came in a `data:` URI."""

    content: bytes = field(repr=False)

    @property
    def _canonical(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def shown(self) -> str:
        return "data:"

    @property
    def may_change(self) -> bool:
        return False

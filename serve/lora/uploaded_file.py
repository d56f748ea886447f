"""References to LoRAs in files that clients uploaded to this service."""

from dataclasses import dataclass, field, replace

from serve.lora.reference import ArchiveMember, Reference


@dataclass(frozen=True, slots=True)
class UploadedFile(Reference):
    """A file that a client uploaded to this service. References to equal contents are equal."""

    sha256: str
    file_id: str = field(compare=False)
    content: memoryview | None = field(default=None, repr=False, compare=False)
    """Sent only to a cache that does not have the LoRA."""

    @property
    def _canonical(self) -> str:
        return self.sha256

    @property
    def display_name(self) -> str:
        return f"/v1/files/{self.file_id}"

    @property
    def may_change(self) -> bool:
        return False


def with_content(reference: Reference, content: memoryview) -> Reference:
    """A reference to an uploaded file, or to a file in it, that has the content of the upload."""
    if isinstance(reference, ArchiveMember):
        return replace(reference, archive=with_content(reference.archive, content))
    assert isinstance(reference, UploadedFile)
    return replace(reference, content=content)


class ContentMissing(Exception):
    """The cache does not have the LoRA of an `UploadedFile`, and its reference was sent without the content."""


def upload_of(reference: Reference) -> UploadedFile | None:
    """The uploaded file that `reference` is, or from which it selects a file."""
    source = reference.archive if isinstance(reference, ArchiveMember) else reference
    return source if isinstance(source, UploadedFile) else None

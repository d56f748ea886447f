"""Parses a caller's text into a LoRA reference."""

import os.path
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from serve.errors import InvalidImage
from serve.lora.file_type import ACCEPTED_SUFFIXES, ARCHIVE_SUFFIXES, WEIGHTS_SUFFIX
from serve.lora.parse_site_url import (
    UnrecognizedForm,
    UrlPath,
    check_suffix,
    parse_civitai_name,
    parse_hub,
    parse_replicate,
    parse_site_url,
)
from serve.lora.reference import (
    ArchiveMember,
    CivitaiFile,
    EmbeddedLora,
    HubFile,
    InlineFile,
    InvalidReference,
    LocalFile,
    Reference,
    ReplicateModel,
    S3Object,
    UrlFile,
)
from serve.lora.uploaded_file import UploadedFile
from serve.media.data_uri import decode_data_uri, is_data_uri
from serve.model_specs import EMBEDDED, EMBEDDED_LORAS
from serve.net.url import InvalidUrl, parse_url
from serve.settings import LoraSettings

MAX_CHARS = 4000
"""Longer texts, except `data:` URIs, are no references and no URLs of this service."""
FORMS: Mapping[type[Reference], str] = {
    ReplicateModel: "owner/name, owner/name/version or owner/name:version (Replicate)",
    HubFile: "huggingface.co/owner/repo, huggingface.co/owner/repo@revision or "
    "huggingface.co/owner/repo/file.safetensors",
    CivitaiFile: "civitai.com/models/ID, civitai.com/models/ID?modelVersionId=V or civitai:ID@V",
    UrlFile: "the https URL of a .safetensors, .tar, .tar.gz, .tgz or .zip file",
    InlineFile: "a data: URI of such a file",
    UploadedFile: "the URL of such a file that was uploaded to this service",
    ArchiveMember: "a reference to an archive followed by #path/in/archive.safetensors",
    S3Object: "s3://bucket/file.safetensors",
    LocalFile: "the path of a file in a folder of lora.folders",
    EmbeddedLora: f"{' or '.join(f'{EMBEDDED}:{name}' for name in EMBEDDED_LORAS)} (for the embedded model)",
}
"""The accepted forms, for error messages. `LocalFile` needs `lora.folders`; `UploadedFile` is not parsed here."""

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_QUOTED = re.compile(r"""(["'`])(?P<quoted>.*)\1|<(?P<angled>.*)>""")
_GITHUB_PAGE = re.compile(r"https://github\.com/(?:[^/]+/){2}blob/")
_PAGE_HOSTS = frozenset(("github.com", "www.github.com", "gitlab.com"))
"""Hosts on which a URL without the suffix of a file is a web page."""


def parse_reference(text: str, settings: LoraSettings) -> Reference:
    """The LoRA that `text` refers to, directly or by an alias. Raises `InvalidReference`."""
    name = unquoted(text)
    try:
        return _parse(unquoted(settings.aliases.get(name, name)), settings)
    except UnrecognizedForm as error:
        raise InvalidReference(
            f"this is not a LoRA reference; use one of: {'; '.join(_accepted_forms(settings))}"
        ) from error
    except InvalidImage as error:
        raise InvalidReference(error.why) from error
    except InvalidUrl as error:
        raise InvalidReference(str(error)) from error


def check_aliases(settings: LoraSettings) -> None:
    """Raises `ValueError` for an alias whose value is not a LoRA reference."""
    for name in settings.aliases:
        try:
            parse_reference(name, settings)
        except InvalidReference as error:
            raise ValueError(f"lora.aliases.{name}: {error}") from error


def _accepted_forms(settings: LoraSettings) -> Sequence[str]:
    forms = [text for kind, text in FORMS.items() if kind is not LocalFile or settings.folders]
    aliases = ", ".join(sorted(settings.aliases))
    return (*forms, f"one of this service's aliases: {aliases}") if aliases else forms


def unquoted(text: str) -> str:
    """`text` without the spaces and quotes around it, which are often copied together with a URL."""
    stripped = text.strip()
    quoted = _QUOTED.fullmatch(stripped)
    return (quoted["quoted"] or quoted["angled"] or "").strip() if quoted else stripped


def _parse(text: str, settings: LoraSettings) -> Reference:
    base, member = split_member(text)
    reference = _parse_source(base, settings)
    return ArchiveMember(reference, member) if member else reference


def split_member(text: str) -> tuple[str, str]:
    """The reference to an archive, and the path after `#` of a weights file in it, if there is one.

    Other fragments of URLs are ignored. A file on disk or on S3 may have `#` in its name.
    """
    base, _, fragment = text.partition("#")
    is_file_name = base.startswith("/") or base.lower().startswith(("s3:", "file:"))
    is_member = len(fragment) <= MAX_CHARS and fragment.lower().endswith(WEIGHTS_SUFFIX)
    if not is_member or (is_file_name and not base.lower().endswith(ARCHIVE_SUFFIXES)):
        return text, ""
    path = unquote(fragment).replace("\\", "/").lstrip("/")
    if not path.isprintable():
        raise UnrecognizedForm
    return base.strip(), str(PurePosixPath(path))


def _parse_source(text: str, settings: LoraSettings) -> Reference:
    if is_data_uri(text):
        return InlineFile(decode_data_uri(text, "", settings.fetch.max_bytes))
    if len(text) > MAX_CHARS or not text.isprintable():
        raise UnrecognizedForm
    if reference := parse_site_url(text):
        return reference
    if text.lower().startswith(("civitai:", "urn:air:", "air:")):
        return parse_civitai_name(text)
    if text.lower().startswith(f"{EMBEDDED}:"):
        return _parse_embedded(text.partition(":")[2].lower())
    if scheme := _SCHEME.match(text):
        return _SCHEMES.get(scheme[1].lower(), _reject_scheme)(text, settings)
    return _parse_local_path(text, settings) if text.startswith("/") else _parse_path_without_host(text)


def _parse_embedded(name: str) -> Reference:
    if name not in EMBEDDED_LORAS:
        raise UnrecognizedForm
    return EmbeddedLora(name)


def _parse_path_without_host(text: str) -> Reference:
    """A model on Replicate, or a file on the Hugging Face Hub if there are three or more segments and a file suffix."""
    if set(text) & set("?#%@"):
        raise UnrecognizedForm
    path = UrlPath.parse(text)
    is_file = len(path.segments) > 2 and path.segments[-1].lower().endswith(ACCEPTED_SUFFIXES)
    # With a dot, the first segment is the host of a URL without a scheme, which is not supported.
    return parse_hub(path) if is_file and "." not in path.segments[0] else parse_replicate(path)


def _parse_url(text: str, settings: LoraSettings) -> Reference:
    """A file at any URL: its content decides whether it is a LoRA, since many URLs of downloads have no suffix."""
    url = parse_url(_GITHUB_PAGE.sub(lambda page: page[0].replace("/blob/", "/raw/"), text))
    check_suffix(url.path)
    has_suffix = url.path.lower().endswith(ACCEPTED_SUFFIXES)
    if not has_suffix and (url.host in _PAGE_HOSTS or (url.path == "/" and not url.query)):
        raise UnrecognizedForm
    if url.scheme == "http" and not settings.allow_http:
        raise InvalidReference("plain http is not allowed; use https, or the operator can set lora.allow_http")
    return UrlFile(str(url))


def _parse_s3(text: str, settings: LoraSettings) -> Reference:
    bucket, _, name = text[len("s3://") :].partition("/")
    check_suffix(name)
    if not _BUCKET.fullmatch(bucket) or not name.lower().endswith(ACCEPTED_SUFFIXES):
        raise UnrecognizedForm
    return S3Object(bucket, name)


def _parse_file_url(text: str, settings: LoraSettings) -> Reference:
    host, slash, path = text[len("file://") :].partition("/")
    if host not in ("", "localhost"):
        raise UnrecognizedForm
    return _parse_local_path(slash + unquote(path), settings)


def _parse_local_path(text: str, settings: LoraSettings) -> Reference:
    if not settings.folders:
        raise InvalidReference("local files are disabled; the operator can allow folders by lora.folders")
    path = Path(os.path.normpath(text))
    if "\0" in text or not any(path.is_relative_to(os.path.normpath(folder)) for folder in settings.folders):
        raise InvalidReference("local files are only accepted from the folders in the operator's lora.folders")
    check_suffix(path.name)
    if not path.name.lower().endswith(ACCEPTED_SUFFIXES):
        raise UnrecognizedForm
    return LocalFile(path)


def _reject_scheme(text: str, settings: LoraSettings) -> Reference:
    raise UnrecognizedForm


_SCHEMES: Mapping[str, Callable[[str, LoraSettings], Reference]] = {
    "http": _parse_url,
    "https": _parse_url,
    "s3": _parse_s3,
    "file": _parse_file_url,
}

"""Parses a caller's text into a LoRA reference."""

import os.path
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote

from serve.errors import InvalidImage
from serve.lora.archive import ACCEPTED_SUFFIXES
from serve.lora.reference import (
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
from serve.media.data_uri import decode_data_uri, is_data_uri
from serve.model_specs import EMBEDDED, EMBEDDED_LORAS
from serve.net.url import InvalidUrl, parse_url
from serve.settings import LoraSettings

MAX_CHARS = 4000
REJECTED_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".gguf", ".onnx")
"""Suffixes of files that may be mistaken for LoRA weights but are unsafe to load or unsupported."""
FORMS = (
    "owner/name, owner/name/version or owner/name:version (Replicate)",
    "huggingface.co/owner/repo, optionally followed by @revision or /file.safetensors",
    "civitai.com/models/ID, optionally followed by ?modelVersionId=V, or civitai:ID@V",
    "an https URL of a .safetensors, .tar, .tar.gz or .zip file",
    "a data: URI of such a file",
    " or ".join(f"{EMBEDDED}:{name}" for name in EMBEDDED_LORAS) + " (for the embedded model)",
)
"""The accepted forms, for error messages."""

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_REPLICATE_VERSION = re.compile(r"[0-9a-f]{8,64}", re.IGNORECASE)
_REPLICATE_PAGES = frozenset(("account", "blog", "collections", "docs", "explore", "p", "pricing"))
"""Top-level pages of replicate.com, whose URLs look like those of a model."""
_HUB_PAGES = frozenset(("collections", "datasets", "docs", "papers", "spaces"))
_HUB_REF = re.compile(r"refs/(?:pr|convert)/[^/]+")
"""Revisions on the Hugging Face Hub that contain slashes."""
_CIVITAI_ID = re.compile(r"[0-9]{1,15}")
_CIVITAI_NAME = re.compile(r"(?:urn:air:[^:]*:[^:]*:)?civitai:(?P<model>[^@]+)(?:@(?P<version>.+))?", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class UnrecognizedForm(Exception):
    """The text has none of the accepted forms."""


def parse_reference(text: str, settings: LoraSettings) -> Reference:
    """The LoRA that `text` refers to, directly or by an alias. Raises `InvalidReference`."""
    name = text.strip()
    try:
        return _parse(settings.aliases.get(name, name).strip(), settings)
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
    aliases = ", ".join(sorted(settings.aliases))
    return (*FORMS, f"one of this service's aliases: {aliases}") if aliases else FORMS


def _parse(text: str, settings: LoraSettings) -> Reference:
    if is_data_uri(text):
        return InlineFile(decode_data_uri(text, "", settings.fetch.max_bytes))
    if len(text) > MAX_CHARS or not text.isprintable():
        raise UnrecognizedForm
    if site := _SITE_URL.fullmatch(text):
        return _SITES[site[1].lower()](_UrlPath.parse(site[2]))
    if text.lower().startswith(("civitai:", "urn:air:")):
        return _parse_civitai_name(text)
    if text.lower().startswith(f"{EMBEDDED}:"):
        return _parse_embedded(text.partition(":")[2].lower())
    if scheme := _SCHEME.match(text):
        return _SCHEMES.get(scheme[1].lower(), _reject_scheme)(text, settings)
    return _parse_local_path(text, settings) if text.startswith("/") else _parse_path_without_host(text)


class _UrlPath(NamedTuple):
    """The part of a URL after the host."""

    segments: tuple[str, ...]
    """Segments of the path, percent-decoded, without empty ones."""
    query: Mapping[str, str]
    """Names are in lower case."""

    @classmethod
    def parse(cls, text: str) -> "_UrlPath":
        """Raises `UnrecognizedForm` for relative segments and unprintable characters."""
        path, _, query = text.partition("#")[0].partition("?")
        segments = tuple(unquote(segment) for segment in path.split("/") if segment)
        if any(segment in (".", "..") or "\\" in segment or not segment.isprintable() for segment in segments):
            raise UnrecognizedForm
        return cls(segments, {name.lower(): values[0] for name, values in parse_qs(query).items()})


def _parse_replicate(path: _UrlPath) -> Reference:
    """`owner/name`, `owner/name:version`, `owner/name/version` or `owner/name/versions/version`."""
    match path.segments:
        case (owner, name):
            name, colon, version = name.partition(":")
            if colon and not version:
                raise UnrecognizedForm
        case (owner, name, version) | (owner, name, "versions", version):
            pass
        case _:
            raise UnrecognizedForm
    is_model = _OWNER.fullmatch(owner) and _NAME.fullmatch(name) and owner.lower() not in _REPLICATE_PAGES
    if not is_model or name.lower().endswith((*ACCEPTED_SUFFIXES, *REJECTED_SUFFIXES)):
        raise UnrecognizedForm
    if version and not _REPLICATE_VERSION.fullmatch(version):
        raise UnrecognizedForm
    return ReplicateModel(owner.lower(), name.lower(), version.lower() or None)


def _parse_hub(path: _UrlPath) -> Reference:
    """`owner/name[@revision][/path]`, or with `resolve`, `blob`, `raw` or `tree` before the revision and path."""
    match path.segments:
        case (owner, name, *rest):
            name, at, revision = name.partition("@")
        case _:
            raise UnrecognizedForm
    if owner in _HUB_PAGES or not _NAME.fullmatch(owner) or not _NAME.fullmatch(name):
        raise UnrecognizedForm
    if at:
        revision, file_path = _split_revision((revision, *rest))
    elif rest and rest[0] in ("resolve", "blob", "raw", "tree"):
        revision, file_path = _split_revision(rest[1:])
        if not file_path and rest[0] != "tree":
            raise UnrecognizedForm
    else:
        revision, file_path = "main", "/".join(rest)
    if file_path.lower().endswith(REJECTED_SUFFIXES):
        raise InvalidReference("only safetensors files are accepted; other formats could execute code or are not LoRAs")
    return HubFile(f"{owner}/{name}", revision, file_path)


def _split_revision(segments: Sequence[str]) -> tuple[str, str]:
    """Splits segments into revision and path."""
    text = "/".join(segments)
    ref = _HUB_REF.match(text)
    revision, path = (ref[0], text[ref.end() :].lstrip("/")) if ref else text.partition("/")[::2]
    if not revision:
        raise UnrecognizedForm
    return revision, path


def _parse_civitai(path: _UrlPath) -> Reference:
    """The URL of a model, optionally with a version, or of a download."""
    query = path.query
    match path.segments:
        case ("models", model) | ("models", model, _):
            ids = _civitai_ids(model, query.get("modelversionid"))
        case ("api", "download", "models", version) | ("model-versions", version):
            ids = _civitai_ids(None, version)
        case _:
            raise UnrecognizedForm
    if query.get("format", "safetensor").lower() != "safetensor":
        raise InvalidReference("only safetensors files are accepted; other formats could execute code")
    filters = tuple((name, query[name].lower()) for name in ("fp", "size") if name in query)
    return CivitaiFile(*ids, filters, query.get("token"))


def _parse_civitai_name(text: str) -> Reference:
    """`civitai:model`, `civitai:model@version`, or an AIR (AI resource name), which ends with one of these."""
    name = _CIVITAI_NAME.fullmatch(text)
    if not name:
        raise UnrecognizedForm
    return CivitaiFile(*_civitai_ids(name["model"], name["version"]))


def _civitai_ids(model: str | None, version: str | None) -> tuple[int | None, int | None]:
    """Model and version. The model is dropped if there is a version, so that equal files have equal references."""
    if not all(_CIVITAI_ID.fullmatch(text) for text in (model, version) if text is not None):
        raise UnrecognizedForm
    return (None, int(version)) if version else (int(model or 0), None)


def _parse_embedded(name: str) -> Reference:
    if name not in EMBEDDED_LORAS:
        raise UnrecognizedForm
    return EmbeddedLora(name)


def _parse_path_without_host(text: str) -> Reference:
    """A model on Replicate, or a file on the Hugging Face Hub if there are three or more segments and a file suffix."""
    if set(text) & set("?#%@"):
        raise UnrecognizedForm
    path = _UrlPath.parse(text)
    is_file = len(path.segments) > 2 and path.segments[-1].lower().endswith(ACCEPTED_SUFFIXES)
    # With a dot, the first segment is the host of a URL without a scheme, which is not supported.
    return _parse_hub(path) if is_file and "." not in path.segments[0] else _parse_replicate(path)


def _parse_url(text: str, settings: LoraSettings) -> Reference:
    url = parse_url(text)
    if not url.path.lower().endswith(ACCEPTED_SUFFIXES):
        raise UnrecognizedForm
    if url.scheme == "http" and not settings.allow_http:
        raise InvalidReference("plain http is not allowed; use https, or the operator can set lora.allow_http")
    return UrlFile(str(url))


def _parse_s3(text: str, settings: LoraSettings) -> Reference:
    bucket, _, name = text[len("s3://") :].partition("/")
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
    if not path.name.lower().endswith(ACCEPTED_SUFFIXES):
        raise UnrecognizedForm
    return LocalFile(path)


def _reject_scheme(text: str, settings: LoraSettings) -> Reference:
    raise UnrecognizedForm


_SITES: Mapping[str, Callable[[_UrlPath], Reference]] = {
    "replicate.com": _parse_replicate,
    "huggingface.co": _parse_hub,
    "hf.co": _parse_hub,
    "civitai.com": _parse_civitai,
    "civitai.green": _parse_civitai,
}
"""Parsers by host, without `www.`."""
_SITE_URL = re.compile(rf"(?:https?://)?(?:www\.)?({'|'.join(map(re.escape, _SITES))})((?:[/?#].*)?)", re.IGNORECASE)
_SCHEMES: Mapping[str, Callable[[str, LoraSettings], Reference]] = {
    "http": _parse_url,
    "https": _parse_url,
    "s3": _parse_s3,
    "file": _parse_file_url,
}

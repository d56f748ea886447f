"""Parses a caller's text into a LoRA reference."""

import os.path
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote

from serve.errors import InvalidImage
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

ENDINGS = (".safetensors", ".tar", ".tar.gz", ".tgz", ".zip")
"""Of files that can hold weights."""
FOREIGN_ENDINGS = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".gguf", ".onnx")
"""Of files that are taken for weights, and are none that can be used safely."""

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"[0-9a-f]{8,64}", re.IGNORECASE)
_ID = re.compile(r"[0-9]{1,15}")
_AIR = re.compile(r"(?:urn:air:[^:]*:[^:]*:)?civitai:(?P<model>[^@]+)(?:@(?P<version>.+))?", re.IGNORECASE)
_LONG_REVISION = re.compile(r"refs/(?:pr|convert)/[^/]+")
"""The hub's revisions that have slashes in them."""
_NO_OWNERS = frozenset(("account", "blog", "collections", "docs", "explore", "p", "pricing"))
"""Pages of Replicate that look like a model."""
_NO_REPOSITORIES = frozenset(("collections", "datasets", "docs", "papers", "spaces"))


class UnrecognizedForm(Exception):
    """The text has none of the accepted forms."""


class ParsedPath(NamedTuple):
    """What stands behind a host."""

    segments: tuple[str, ...]
    """Of the path, without empty ones and without percent signs."""
    query: Mapping[str, str]
    """By names in lower case."""

    @classmethod
    def read(cls, text: str) -> "ParsedPath":
        """Raises `NoForm` for a path that no site has."""
        path, _, query = text.partition("#")[0].partition("?")
        segments = tuple(unquote(segment) for segment in path.split("/") if segment)
        if any(segment in (".", "..") or "\\" in segment or not segment.isprintable() for segment in segments):
            raise UnrecognizedForm
        return cls(segments, {name.lower(): values[0] for name, values in parse_qs(query).items()})


def replicate(behind: ParsedPath) -> Reference:
    """`owner/name`, `owner/name:version`, `owner/name/version` or `owner/name/versions/version`."""
    match behind.segments:
        case (owner, name):
            name, colon, version = name.partition(":")
            if colon and not version:
                raise UnrecognizedForm
        case (owner, name, version) | (owner, name, "versions", version):
            pass
        case _:
            raise UnrecognizedForm
    named = _OWNER.fullmatch(owner) and _NAME.fullmatch(name) and owner.lower() not in _NO_OWNERS
    if not named or name.lower().endswith((*ENDINGS, *FOREIGN_ENDINGS)):
        raise UnrecognizedForm
    if version and not _VERSION.fullmatch(version):
        raise UnrecognizedForm
    return ReplicateModel(owner.lower(), name.lower(), version.lower() or None)


def hub(behind: ParsedPath) -> Reference:
    """`owner/name[@revision][/path]`, or with `resolve`, `blob`, `raw` or `tree` before revision and path."""
    match behind.segments:
        case (owner, name, *rest):
            name, at, revision = name.partition("@")
        case _:
            raise UnrecognizedForm
    if owner in _NO_REPOSITORIES or not _NAME.fullmatch(owner) or not _NAME.fullmatch(name):
        raise UnrecognizedForm
    if at:
        revision, path = _revision_and_path((revision, *rest))
    elif rest and rest[0] in ("resolve", "blob", "raw", "tree"):
        revision, path = _revision_and_path(rest[1:])
        if not path and rest[0] != "tree":
            raise UnrecognizedForm
    else:
        revision, path = "main", "/".join(rest)
    if path.lower().endswith(FOREIGN_ENDINGS):
        raise InvalidReference("only safetensors files are taken: others could run code here, or are no LoRA")
    return HubFile(f"{owner}/{name}", revision, path)


def _revision_and_path(segments: tuple[str, ...] | list[str]) -> tuple[str, str]:
    behind = "/".join(segments)
    long = _LONG_REVISION.match(behind)
    revision, path = (long[0], behind[long.end() :].lstrip("/")) if long else behind.partition("/")[::2]
    if not revision:
        raise UnrecognizedForm
    return revision, path


def civitai(behind: ParsedPath) -> Reference:
    """The page of a model, with or without a version, or the address of a download."""
    query = behind.query
    match behind.segments:
        case ("models", model) | ("models", model, _):
            ids = _ids(model, query.get("modelversionid"))
        case ("api", "download", "models", version) | ("model-versions", version):
            ids = _ids(None, version)
        case _:
            raise UnrecognizedForm
    if query.get("format", "safetensor").lower() != "safetensor":
        raise InvalidReference("only safetensors files are taken: others could run code here")
    choice = tuple((name, query[name].lower()) for name in ("fp", "size") if name in query)
    return CivitaiFile(*ids, choice, query.get("token"))


def civitai_name(text: str) -> Reference:
    """`civitai:model` or `civitai:model@version`, also as the end of an AIR."""
    air = _AIR.fullmatch(text)
    if not air:
        raise UnrecognizedForm
    return CivitaiFile(*_ids(air["model"], air["version"]))


def _ids(model: str | None, version: str | None) -> tuple[int | None, int | None]:
    """Model and version; the version says all where there is one."""
    if not all(_ID.fullmatch(text) for text in (model, version) if text is not None):
        raise UnrecognizedForm
    return (None, int(version)) if version else (int(model or 0), None)


SITES: Mapping[str, Callable[[ParsedPath], Reference]] = {
    "replicate.com": replicate,
    "huggingface.co": hub,
    "hf.co": hub,
    "civitai.com": civitai,
    "civitai.green": civitai,
}
"""Host, without `www.`, to what reads the rest."""


MAX_CHARS = 4000
FORMS = (
    "owner/name, owner/name/version or owner/name:version (Replicate)",
    "huggingface.co/owner/repo, with @revision or /file.safetensors behind it",
    "civitai.com/models/ID, with ?modelVersionId=V behind it, or civitai:ID@V",
    "an https URL of a .safetensors, .tar, .tar.gz or .zip file",
    "a data: URI of such a file",
    " or ".join(f"{EMBEDDED}:{name}" for name in EMBEDDED_LORAS) + " (for the embedded model)",
)

_SITE = re.compile(rf"(?:https?://)?(?:www\.)?({'|'.join(map(re.escape, SITES))})((?:[/?#].*)?)", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def parse_reference(text: str, settings: LoraSettings) -> Reference:
    """The LoRA that `text` names. Raises `InvalidReference`."""
    named = text.strip()
    named = settings.aliases.get(named, named).strip()
    try:
        return _read(named, settings)
    except UnrecognizedForm as error:
        raise InvalidReference(f"this names no LoRA; write {'; '.join(_forms(settings))}") from error
    except InvalidImage as refusal:
        raise InvalidReference(refusal.why) from refusal
    except InvalidUrl as error:
        raise InvalidReference(str(error)) from error


def check_aliases(settings: LoraSettings) -> None:
    """Raises `ValueError` for an operator's own name that leads nowhere."""
    for name in settings.aliases:
        try:
            parse_reference(name, settings)
        except InvalidReference as error:
            raise ValueError(f"lora.aliases.{name}: {error}") from error


def _forms(settings: LoraSettings) -> tuple[str, ...]:
    own = ", ".join(sorted(settings.aliases))
    return (*FORMS, f"one of this service's own names: {own}") if own else FORMS


def _read(text: str, settings: LoraSettings) -> Reference:
    if is_data_uri(text):
        return InlineFile(decode_data_uri(text, "", settings.fetch.max_bytes))
    if len(text) > MAX_CHARS or not text.isprintable():
        raise UnrecognizedForm
    if site := _SITE.fullmatch(text):
        return SITES[site[1].lower()](ParsedPath.read(site[2]))
    if text.lower().startswith(("civitai:", "urn:air:")):
        return civitai_name(text)
    if text.lower().startswith(f"{EMBEDDED}:"):
        return _embedded(text.partition(":")[2].lower())
    if scheme := _SCHEME.match(text):
        return _SCHEMES.get(scheme[1].lower(), _unknown)(text, settings)
    return _local(text, settings) if text.startswith("/") else _without_host(text)


def _embedded(name: str) -> Reference:
    if name not in EMBEDDED_LORAS:
        raise UnrecognizedForm
    return EmbeddedLora(name)


def _without_host(text: str) -> Reference:
    """A model of Replicate, or what can only be a file of the hub."""
    if set(text) & set("?#%@"):
        raise UnrecognizedForm
    behind = ParsedPath.read(text)
    is_file = len(behind.segments) > 2 and behind.segments[-1].lower().endswith(ENDINGS)
    # A host has a dot in it, which no owner has.
    return hub(behind) if is_file and "." not in behind.segments[0] else replicate(behind)


def _web(text: str, settings: LoraSettings) -> Reference:
    url = parse_url(text)
    if not url.path.lower().endswith(ENDINGS):
        raise UnrecognizedForm
    if url.scheme == "http" and not settings.allow_http:
        raise InvalidReference("plain http is not taken, use https; the operator can allow it by lora.allow_http")
    return UrlFile(str(url))


def _s3(text: str, settings: LoraSettings) -> Reference:
    bucket, _, name = text[len("s3://") :].partition("/")
    if not _BUCKET.fullmatch(bucket) or not name.lower().endswith(ENDINGS):
        raise UnrecognizedForm
    return S3Object(bucket, name)


def _file(text: str, settings: LoraSettings) -> Reference:
    host, slash, path = text[len("file://") :].partition("/")
    if host not in ("", "localhost"):
        raise UnrecognizedForm
    return _local(slash + unquote(path), settings)


def _local(text: str, settings: LoraSettings) -> Reference:
    if not settings.folders:
        raise InvalidReference("local files are not served here; the operator can name folders of them by lora.folders")
    path = Path(os.path.normpath(text))
    if "\0" in text or not any(path.is_relative_to(os.path.normpath(folder)) for folder in settings.folders):
        raise InvalidReference("local files are served only from the folders that the operator named by lora.folders")
    if not path.name.lower().endswith(ENDINGS):
        raise UnrecognizedForm
    return LocalFile(path)


def _unknown(text: str, settings: LoraSettings) -> Reference:
    raise UnrecognizedForm


_SCHEMES: Mapping[str, Callable[[str, LoraSettings], Reference]] = {
    "http": _web,
    "https": _web,
    "s3": _s3,
    "file": _file,
}

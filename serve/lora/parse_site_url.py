"""Parses the URLs of Replicate, Hugging Face and CivitAI, and their short forms, into LoRA references."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import parse_qs, unquote

from serve.lora.file_type import ACCEPTED_SUFFIXES, REJECTED_SUFFIXES
from serve.lora.reference import CivitaiFile, HubFile, InvalidReference, Reference, ReplicateModel

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_REPLICATE_VERSION = re.compile(r"[0-9a-f]{8,64}", re.IGNORECASE)
_REPLICATE_PAGES = frozenset(("account", "blog", "collections", "docs", "explore", "p", "pricing"))
"""Top-level pages of replicate.com, whose URLs look like those of a model."""
_REPLICATE_TABS = frozenset(("api", "cog", "examples", "playground", "readme", "train", "versions"))
"""Pages about a model, below its URL."""
_HUB_PAGES = frozenset(("api", "collections", "datasets", "docs", "papers", "spaces"))
_HUB_REF = re.compile(r"refs/(?:pr|convert)/[^/]+")
"""Revisions on the Hugging Face Hub that contain slashes."""
_CIVITAI_ID = re.compile(r"[0-9]{1,15}")
_CIVITAI_NAME = re.compile(
    r"(?:(?:urn:)?air:[^:]*:[^:]*:)?civitai:(?P<model>[^@]+)(?:@(?P<version>.+))?", re.IGNORECASE
)


class UnrecognizedForm(Exception):
    """The text has none of the accepted forms."""


class UrlPath(NamedTuple):
    """The part of a URL after the host."""

    segments: tuple[str, ...]
    """Segments of the path, percent-decoded, without empty ones."""
    query: Mapping[str, str]
    """Names are in lower case."""

    @classmethod
    def parse(cls, text: str) -> "UrlPath":
        """Raises `UnrecognizedForm` for relative segments and unprintable characters."""
        path, _, query = text.partition("#")[0].partition("?")
        segments = tuple(unquote(segment) for segment in path.split("/") if segment)
        if any(segment in (".", "..") or "\\" in segment or not segment.isprintable() for segment in segments):
            raise UnrecognizedForm
        return cls(segments, {name.lower(): values[0] for name, values in parse_qs(query).items()})


def check_suffix(name: str) -> None:
    """Raises `InvalidReference` for a file whose suffix tells that it cannot be used."""
    if name.lower().endswith(REJECTED_SUFFIXES):
        suffix = name.lower().rpartition(".")[2]
        raise InvalidReference(
            f"only safetensors files are accepted; a .{suffix} file could execute code or is not a LoRA: convert it"
        )


def parse_replicate(path: UrlPath) -> Reference:
    """A model or one of its versions: `owner/name`, or with `:version`, `/version` or `/versions/version`.

    Raises `UnrecognizedForm` and `InvalidReference`.
    """
    match path.segments:
        case (owner, name):
            name, colon, version = name.replace("@sha256:", ":").partition(":")
            if colon and not version:
                raise UnrecognizedForm
        case (owner, name, "versions", version):
            pass
        case (owner, name, tab, *_) if tab in _REPLICATE_TABS:
            version = ""
        case (owner, name, version):
            pass
        case _:
            raise UnrecognizedForm
    check_suffix(name)
    is_model = _OWNER.fullmatch(owner) and _NAME.fullmatch(name) and owner.lower() not in _REPLICATE_PAGES
    if not is_model or name.lower().endswith(ACCEPTED_SUFFIXES):
        raise UnrecognizedForm
    if version and not _REPLICATE_VERSION.fullmatch(version):
        raise UnrecognizedForm
    return ReplicateModel(owner.lower(), name.lower(), version.lower() or None)


def parse_hub(path: UrlPath) -> Reference:
    """A repository or a file: `owner/name[@revision][/path]`, or `owner/name/resolve/revision/path`.

    `resolve` can also be `blob`, `raw`, `tree` or `commit`. Raises `UnrecognizedForm` and `InvalidReference`.
    """
    match path.segments:
        case (owner, name, *rest):
            name, at, revision = name.partition("@")
            name = name.removesuffix(".git")
        case _:
            raise UnrecognizedForm
    if owner in _HUB_PAGES or not _NAME.fullmatch(owner) or not _NAME.fullmatch(name):
        raise UnrecognizedForm
    if at:
        revision, file_path = _split_revision((revision, *rest))
    elif rest and rest[0] in ("resolve", "blob", "raw", "tree", "commit"):
        revision, file_path = _split_revision(rest[1:])
        if not file_path and rest[0] not in ("tree", "commit"):
            raise UnrecognizedForm
    else:
        revision, file_path = "main", "/".join(rest)
    check_suffix(file_path)
    return HubFile(f"{owner}/{name}", revision, file_path)


def _split_revision(segments: Sequence[str]) -> tuple[str, str]:
    """Splits segments into revision and path."""
    text = "/".join(segments)
    ref = _HUB_REF.match(text)
    revision, path = (ref[0], text[ref.end() :].lstrip("/")) if ref else text.partition("/")[::2]
    if not revision:
        raise UnrecognizedForm
    return revision, path


def _parse_civitai(path: UrlPath) -> Reference:
    """The URL of a model, optionally with a version, or of a download."""
    query = path.query
    match path.segments:
        case ("models", model) | ("models", model, _):
            ids = _civitai_ids(model, query.get("modelversionid"))
        case ("api", "v1", "models", model):
            ids = _civitai_ids(model, None)
        case (
            ("api", "download", "models", version)
            | ("model-versions", version)
            | ("api", "v1", "model-versions", version)
        ):
            ids = _civitai_ids(None, version)
        case _:
            raise UnrecognizedForm
    if query.get("format", "safetensor").lower() != "safetensor":
        raise InvalidReference("only safetensors files are accepted; other formats could execute code")
    filters = tuple((name, query[name].lower()) for name in ("fp", "size") if name in query)
    return CivitaiFile(*ids, filters, query.get("token"))


def parse_civitai_name(text: str) -> Reference:
    """`civitai:model`, `civitai:model@version`, or an AIR (AI resource name), which ends with one of these.

    Raises `UnrecognizedForm`.
    """
    name = _CIVITAI_NAME.fullmatch(text)
    if not name:
        raise UnrecognizedForm
    return CivitaiFile(*_civitai_ids(name["model"], name["version"]))


def _civitai_ids(model: str | None, version: str | None) -> tuple[int | None, int | None]:
    """Model and version. The model is dropped if there is a version, so that equal files have equal references."""
    if not all(_CIVITAI_ID.fullmatch(text) for text in (model, version) if text is not None):
        raise UnrecognizedForm
    return (None, int(version)) if version else (int(model or 0), None)


_SITES: Mapping[str, Callable[[UrlPath], Reference]] = {
    "replicate.com": parse_replicate,
    "r8.im": parse_replicate,
    "huggingface.co": parse_hub,
    "hf.co": parse_hub,
    "civitai.com": _parse_civitai,
    "civitai.green": _parse_civitai,
    "civitai.red": _parse_civitai,
}
"""Parsers by host, without `www.`. CivitAI serves the same models on all of its hosts."""
_SITE_URL = re.compile(
    rf"(?:https?://)?(?:www\.)?({'|'.join(map(re.escape, _SITES))})\.?(?::443|:80)?((?:[/?].*)?)", re.IGNORECASE
)


def parse_site_url(text: str) -> Reference | None:
    """The LoRA at a URL of a known site, with or without a scheme; None for other text.

    Raises `UnrecognizedForm` and `InvalidReference`.
    """
    site = _SITE_URL.fullmatch(text)
    return _SITES[site[1].lower()](UrlPath.parse(site[2])) if site else None

"""What stands behind the hosts of Replicate, Hugging Face and CivitAI, in all forms that people copy. Pure."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import parse_qs, unquote

from serve.lora.reference import BadReference, CivitaiFile, HubFile, Reference, ReplicateModel

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


class NoForm(Exception):
    """The text has none of the accepted forms."""


class Behind(NamedTuple):
    """What stands behind a host."""

    segments: tuple[str, ...]
    """Of the path, without empty ones and without percent signs."""
    query: Mapping[str, str]
    """By names in lower case."""

    @classmethod
    def read(cls, text: str) -> "Behind":
        """Raises `NoForm` for a path that no site has."""
        path, _, query = text.partition("#")[0].partition("?")
        segments = tuple(unquote(segment) for segment in path.split("/") if segment)
        if any(segment in (".", "..") or "\\" in segment or not segment.isprintable() for segment in segments):
            raise NoForm
        return cls(segments, {name.lower(): values[0] for name, values in parse_qs(query).items()})


def replicate(behind: Behind) -> Reference:
    """`owner/name`, `owner/name:version`, `owner/name/version` or `owner/name/versions/version`."""
    match behind.segments:
        case (owner, name):
            name, colon, version = name.partition(":")
            if colon and not version:
                raise NoForm
        case (owner, name, version) | (owner, name, "versions", version):
            pass
        case _:
            raise NoForm
    named = _OWNER.fullmatch(owner) and _NAME.fullmatch(name) and owner.lower() not in _NO_OWNERS
    if not named or name.lower().endswith((*ENDINGS, *FOREIGN_ENDINGS)):
        raise NoForm
    if version and not _VERSION.fullmatch(version):
        raise NoForm
    return ReplicateModel(owner.lower(), name.lower(), version.lower() or None)


def hub(behind: Behind) -> Reference:
    """`owner/name[@revision][/path]`, or with `resolve`, `blob`, `raw` or `tree` before revision and path."""
    match behind.segments:
        case (owner, name, *rest):
            name, at, revision = name.partition("@")
        case _:
            raise NoForm
    if owner in _NO_REPOSITORIES or not _NAME.fullmatch(owner) or not _NAME.fullmatch(name):
        raise NoForm
    if at:
        revision, path = _revision_and_path((revision, *rest))
    elif rest and rest[0] in ("resolve", "blob", "raw", "tree"):
        revision, path = _revision_and_path(rest[1:])
        if not path and rest[0] != "tree":
            raise NoForm
    else:
        revision, path = "main", "/".join(rest)
    if path.lower().endswith(FOREIGN_ENDINGS):
        raise BadReference("only safetensors files are taken: others could run code here, or are no LoRA")
    return HubFile(f"{owner}/{name}", revision, path)


def _revision_and_path(segments: tuple[str, ...] | list[str]) -> tuple[str, str]:
    behind = "/".join(segments)
    long = _LONG_REVISION.match(behind)
    revision, path = (long[0], behind[long.end() :].lstrip("/")) if long else behind.partition("/")[::2]
    if not revision:
        raise NoForm
    return revision, path


def civitai(behind: Behind) -> Reference:
    """The page of a model, with or without a version, or the address of a download."""
    query = behind.query
    match behind.segments:
        case ("models", model) | ("models", model, _):
            ids = _ids(model, query.get("modelversionid"))
        case ("api", "download", "models", version) | ("model-versions", version):
            ids = _ids(None, version)
        case _:
            raise NoForm
    if query.get("format", "safetensor").lower() != "safetensor":
        raise BadReference("only safetensors files are taken: others could run code here")
    choice = tuple((name, query[name].lower()) for name in ("fp", "size") if name in query)
    return CivitaiFile(*ids, choice, query.get("token"))


def civitai_name(text: str) -> Reference:
    """`civitai:model` or `civitai:model@version`, also as the end of an AIR."""
    air = _AIR.fullmatch(text)
    if not air:
        raise NoForm
    return CivitaiFile(*_ids(air["model"], air["version"]))


def _ids(model: str | None, version: str | None) -> tuple[int | None, int | None]:
    """Model and version; the version says all where there is one."""
    if not all(_ID.fullmatch(text) for text in (model, version) if text is not None):
        raise NoForm
    return (None, int(version)) if version else (int(model or 0), None)


SITES: Mapping[str, Callable[[Behind], Reference]] = {
    "replicate.com": replicate,
    "huggingface.co": hub,
    "hf.co": hub,
    "civitai.com": civitai,
    "civitai.green": civitai,
}
"""Host, without `www.`, to what reads the rest."""

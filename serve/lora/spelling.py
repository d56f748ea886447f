"""Reads a caller's text into a `Reference`: every accepted form, and a message that shows them for all others. Pure."""

import os.path
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote

from serve.embedded import EMBEDDED, LORAS
from serve.errors import PictureRefused
from serve.lora.reference import BadReference, EmbeddedLora, Enclosed, LocalFile, Reference, S3Object, WebFile
from serve.lora.sites import ENDINGS, SITES, Behind, NoForm, civitai_name, hub, replicate
from serve.media.datauri import is_data_uri, read_data_uri
from serve.media.url import BadUrl, read_url
from serve.settings import LoraSettings

MAX_CHARS = 4000
FORMS = (
    "owner/name, owner/name/version or owner/name:version (Replicate)",
    "huggingface.co/owner/repo, with @revision or /file.safetensors behind it",
    "civitai.com/models/ID, with ?modelVersionId=V behind it, or civitai:ID@V",
    "an https URL of a .safetensors, .tar, .tar.gz or .zip file",
    "a data: URI of such a file",
    " or ".join(f"{EMBEDDED}:{name}" for name in LORAS) + " (for the embedded model)",
)

_SITE = re.compile(rf"(?:https?://)?(?:www\.)?({'|'.join(map(re.escape, SITES))})((?:[/?#].*)?)", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def read_reference(text: str, settings: LoraSettings) -> Reference:
    """The LoRA that `text` names. Raises `BadReference`."""
    named = text.strip()
    named = settings.short_names.get(named, named).strip()
    try:
        return _read(named, settings)
    except NoForm as error:
        raise BadReference(f"this names no LoRA; write {'; '.join(_forms(settings))}") from error
    except PictureRefused as refusal:
        raise BadReference(refusal.why) from refusal
    except BadUrl as error:
        raise BadReference(str(error)) from error


def check_short_names(settings: LoraSettings) -> None:
    """Raises `ValueError` for an operator's own name that leads nowhere."""
    for name in settings.short_names:
        try:
            read_reference(name, settings)
        except BadReference as error:
            raise ValueError(f"lora.short_names.{name}: {error}") from error


def _forms(settings: LoraSettings) -> tuple[str, ...]:
    own = ", ".join(sorted(settings.short_names))
    return (*FORMS, f"one of this service's own names: {own}") if own else FORMS


def _read(text: str, settings: LoraSettings) -> Reference:
    if is_data_uri(text):
        return Enclosed(read_data_uri(text, "", settings.fetch.max_bytes))
    if len(text) > MAX_CHARS or not text.isprintable():
        raise NoForm
    if site := _SITE.fullmatch(text):
        return SITES[site[1].lower()](Behind.read(site[2]))
    if text.lower().startswith(("civitai:", "urn:air:")):
        return civitai_name(text)
    if text.lower().startswith(f"{EMBEDDED}:"):
        return _embedded(text.partition(":")[2].lower())
    if scheme := _SCHEME.match(text):
        return _SCHEMES.get(scheme[1].lower(), _unknown)(text, settings)
    return _local(text, settings) if text.startswith("/") else _without_host(text)


def _embedded(name: str) -> Reference:
    if name not in LORAS:
        raise NoForm
    return EmbeddedLora(name)


def _without_host(text: str) -> Reference:
    """A model of Replicate, or what can only be a file of the hub."""
    if set(text) & set("?#%@"):
        raise NoForm
    behind = Behind.read(text)
    is_file = len(behind.segments) > 2 and behind.segments[-1].lower().endswith(ENDINGS)
    # A host has a dot in it, which no owner has.
    return hub(behind) if is_file and "." not in behind.segments[0] else replicate(behind)


def _web(text: str, settings: LoraSettings) -> Reference:
    url = read_url(text)
    if not url.path.lower().endswith(ENDINGS):
        raise NoForm
    if url.scheme == "http" and not settings.allow_http:
        raise BadReference("plain http is not taken, use https; the operator can allow it by lora.allow_http")
    return WebFile(str(url))


def _s3(text: str, settings: LoraSettings) -> Reference:
    bucket, _, name = text[len("s3://") :].partition("/")
    if not _BUCKET.fullmatch(bucket) or not name.lower().endswith(ENDINGS):
        raise NoForm
    return S3Object(bucket, name)


def _file(text: str, settings: LoraSettings) -> Reference:
    host, slash, path = text[len("file://") :].partition("/")
    if host not in ("", "localhost"):
        raise NoForm
    return _local(slash + unquote(path), settings)


def _local(text: str, settings: LoraSettings) -> Reference:
    if not settings.folders:
        raise BadReference("local files are not served here; the operator can name folders of them by lora.folders")
    path = Path(os.path.normpath(text))
    if "\0" in text or not any(path.is_relative_to(os.path.normpath(folder)) for folder in settings.folders):
        raise BadReference("local files are served only from the folders that the operator named by lora.folders")
    if not path.name.lower().endswith(ENDINGS):
        raise NoForm
    return LocalFile(path)


def _unknown(text: str, settings: LoraSettings) -> Reference:
    raise NoForm


_SCHEMES: Mapping[str, Callable[[str, LoraSettings], Reference]] = {
    "http": _web,
    "https": _web,
    "s3": _s3,
    "file": _file,
}

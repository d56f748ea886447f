"""Where the bytes of a reference lie, for every kind of reference that is downloaded."""

from urllib.parse import quote

from serve.lora import civitai, hub
from serve.lora.address import Address, Located
from serve.lora.download import Downloader
from serve.lora.reference import CivitaiFile, HubFile, ReplicateModel, S3Object, WebFile
from serve.lora.site import WEB, Site, Sites
from serve.settings import LoraSettings, Secrets

Downloadable = ReplicateModel | HubFile | CivitaiFile | WebFile | S3Object


class Source:
    """Asks the sites as the settings place them."""

    def __init__(self, settings: LoraSettings, secrets: Secrets, downloader: Downloader) -> None:
        self._sites = Sites.of(settings, secrets)
        self._s3_url = settings.s3_url.rstrip("/")
        self._downloader = downloader

    async def locate(self, reference: Downloadable) -> Located:
        """The file that `reference` means now. Raises `FetchFailed`, and `LoraRefused` where none can be meant."""
        match reference:
            case HubFile():
                return await hub.locate(reference, self._sites.hub, self._downloader)
            case CivitaiFile():
                return await civitai.locate(reference, self._sites.civitai, self._downloader)
            case ReplicateModel():
                return _on_replicate(reference, self._sites.replicate)
            case S3Object():
                base = self._s3_url.replace("{bucket}", reference.bucket)
                return Located(Address(f"{base}/{quote(reference.name)}", WEB))
            case WebFile():
                return Located(Address(reference.url, WEB))


def _on_replicate(reference: ReplicateModel, site: Site) -> Located:
    """Replicate redirects from here to the tar that its trainer made."""
    model = f"{site.base_url.rstrip('/')}/{reference.owner}/{reference.name}"
    at_version = f"/versions/{reference.version}" if reference.version else ""
    return Located(Address(f"{model}{at_version}/_weights", site), revision=reference.version)

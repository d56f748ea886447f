"""Where the bytes of a LoRA lie, after its site was asked. Values only."""

from dataclasses import dataclass

from serve.lora.site import Site


@dataclass(frozen=True, slots=True)
class Address:
    """One file of a site."""

    url: str
    site: Site
    """Who is asked: whose credential goes along, and what its refusals mean."""
    sha256: str | None = None
    """What the site says that the bytes hash to, in lower case."""


@dataclass(frozen=True, slots=True)
class Located:
    """The file that a reference means now."""

    file: Address
    revision: str | None = None
    """Names the content; None where only its server can tell, by the tag of the download."""
    config: Address | None = None
    """PEFT's configuration beside the weights."""

"""What a record tells of the LoRAs that a prediction draws with: where they are from, and what it took. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from serve.lora.brought import Brought
from serve.lora.reference import Reference
from serve.plan import LoraUse

SHOWN_TENSORS = 3
MEGABYTE = 1e6


def lora_lines(
    uses: Iterable[LoraUse], references: Mapping[str, Reference], brought: Mapping[str, Brought[Any]]
) -> tuple[str, ...]:
    """Log lines. All three name a LoRA by the key of its reference."""
    return tuple(
        line
        for use in uses
        for line in _lines(f"LoRA {references[use.key].shown} at scale {use.scale:g}", brought[use.key])
    )


def lora_metrics(
    uses: Iterable[LoraUse], references: Mapping[str, Reference], brought: Mapping[str, Brought[Any]]
) -> dict[str, Any]:
    """The metric `loras`, where there are any: one entry a use, with bytes and seconds."""
    entries = [_entry(use, references[use.key], brought[use.key]) for use in uses]
    return {"loras": entries} if entries else {}


def _lines(what: str, lora: Brought[Any]) -> Iterator[str]:
    match lora.origin:
        case "memory":
            yield f"{what}: it was at hand"
        case "disk":
            yield f"{what}: it was on the disk of the cache"
        case "download":
            megabytes = f"{lora.fetched_bytes / MEGABYTE:.1f} MB"
            yield f"{what}: downloaded {megabytes} in {lora.fetch_s:.2f} s, checked in {lora.check_s:.2f} s"
    if lora.outdated:
        yield f"{what}: it could not be looked up again, so this is how it was last seen"
    if unapplied := lora.facts.unapplied:
        more = f"; and {len(unapplied) - SHOWN_TENSORS} more" if len(unapplied) > SHOWN_TENSORS else ""
        yield f"{what}: some of its tensors are not applied: {'; '.join(unapplied[:SHOWN_TENSORS])}{more}"


def _entry(use: LoraUse, reference: Reference, lora: Brought[Any]) -> dict[str, Any]:
    return {
        "lora": reference.shown,
        "scale": use.scale,
        "origin": lora.origin,
        "rank": lora.facts.rank,
        "size_bytes": lora.facts.size_bytes,
        "fetched_bytes": lora.fetched_bytes,
        "fetch_s": round(lora.fetch_s, 3),
        "check_s": round(lora.check_s, 3),
    }

"""What an engine has done and holds, in plain numbers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Totals since the engine was created, and its current load."""

    batches: int
    """Passes of the transformer."""
    image_steps: int
    """Steps of single images in those batches."""
    images: int
    """Images of submitted requests that have not ended."""
    lora_loads: int
    """LoRAs copied to the device."""
    resident_loras: int
    lora_slots: int
    lora_slots_used: int
    prompt_cache_hits: int
    prompt_cache_misses: int
    compiled_graphs: int
    """In this process."""

    @property
    def mean_batch(self) -> float:
        return self.image_steps / self.batches if self.batches else 0.0

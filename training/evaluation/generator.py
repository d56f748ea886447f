"""Generates images with a checkpoint through the service's engine, without Ray or HTTP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from serve.engine.checkpoint import load_checkpoint
from serve.engine.checkpoint_files import read_geometry
from serve.engine.engine import Engine
from serve.engine.request import Canceled, Completed, EngineEvent, Failed, GenerationRequest, ImageReady, LoraRequest
from serve.lora.convert_state_dict import StateDictConverter
from serve.lora.weights import LoraWeights
from serve.model_specs import MaskArray, Size, VariantName
from serve.settings import Fp8Kernel, ModelSettings, PoolSettings, Precision, Settings

MAX_RANK = 256


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One image to generate."""

    prompt: str
    seed: int
    size: Size
    steps: int
    guidance: float | None
    image: Image.Image | None = None
    """Input image, of the requested size."""
    strength: float | None = None
    mask: MaskArray | None = None
    """`[height, width]`; pixels from 128 on are regenerated."""
    scales: Mapping[str, float] = field(default_factory=dict)
    """Scales of the generator's LoRAs, by name; others are not used."""

    def generation_request(self, loras: Mapping[str, LoraWeights]) -> GenerationRequest:
        return GenerationRequest(
            prompt=self.prompt,
            size=self.size,
            steps=self.steps,
            seeds=(self.seed,),
            guidance=self.guidance,
            strength=self.strength,
            image=None if self.image is None else np.array(self.image.convert("RGB")),
            mask=self.mask,
            loras=tuple(LoraRequest(name, scale) for name, scale in self.scales.items()),
            lora_weights={name: loras[name] for name in self.scales},
        )


class ImageGenerator:
    """An engine with one checkpoint, as a context manager."""

    def __init__(
        self,
        variant: VariantName,
        source: str,
        precision: Precision,
        model: ModelSettings | None = None,
        loras: Mapping[str, Path] | None = None,
        fp8_kernel: Fp8Kernel = "auto",
    ) -> None:
        pool = PoolSettings(model=variant, precision=precision, fp8_kernel=fp8_kernel)
        model = model or Settings().models[variant].model_copy(update={"source": source})
        self._engine = Engine(load_checkpoint(model, pool, None), pool)
        converter = StateDictConverter(read_geometry(model, None), max_rank=MAX_RANK)
        self._loras = {name: converter.convert(load_file(path), {}) for name, path in (loras or {}).items()}

    def __enter__(self) -> Self:
        self._engine.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.stop()

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image.Image]:
        """Returns the images in order of the requests, which share the engine's batches. Raises the engine's errors."""
        events: SimpleQueue[tuple[int, EngineEvent]] = SimpleQueue()
        for index, request in enumerate(requests):
            self._engine.submit(request.generation_request(self._loras), partial(_put_event, events, index))
        images: dict[int, Image.Image] = {}
        ended = 0
        while ended < len(requests):
            index, event = events.get()
            if isinstance(event, ImageReady):
                images[index] = Image.fromarray(event.to_host())
            elif isinstance(event, Failed):
                raise event.error
            ended += isinstance(event, Completed | Canceled)
        return [images[index] for index in range(len(requests))]


def _put_event(events: "SimpleQueue[tuple[int, EngineEvent]]", index: int, event: EngineEvent) -> None:
    events.put((index, event))

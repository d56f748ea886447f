"""A checkpoint that draws for a benchmark: prompts in, pictures out, by the engine that serves. No Ray, no HTTP."""

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

from serve.engine import checkpoint
from serve.engine.engine import Engine
from serve.engine.request import Canceled, Completed, EngineEvent, Failed, GenerationRequest, ImageReady, MaskArray
from serve.generation_plan import GenerationPlan, Mode, PlannedLora
from serve.lora.convert_state_dict import StateDictConverter
from serve.lora.weights import LoraWeights
from serve.model_specs import Size, VariantName
from serve.settings import ModelSettings, PoolSettings, Precision, Settings

MAX_RANK = 256


@dataclass(frozen=True, slots=True)
class Order:
    """One picture to be drawn."""

    prompt: str
    seed: int
    size: Size
    steps: int
    guidance: float | None
    picture: Image.Image | None = None
    """To begin from, of the order's size."""
    strength: float | None = None
    mask: MaskArray | None = None
    """What of `picture` is repainted: [height, width], white from 128 on."""
    scales: Mapping[str, float] = field(default_factory=dict)
    """Of the artist's LoRAs, by name; others are not used."""

    def job(self, loras: Mapping[str, LoraWeights]) -> GenerationRequest:
        mode: Mode = (
            "text_to_image" if self.picture is None else "image_to_image" if self.mask is None else "inpainting"
        )
        plan = GenerationPlan(
            pool="quality",
            mode=mode,
            prompt=self.prompt,
            size=self.size,
            steps=self.steps,
            guidance=self.guidance,
            strength=self.strength,
            seeds=(self.seed,),
            output_format="png",
            output_quality=100,
            check_safety=False,
            max_megapixels=4.0,
            loras=tuple(PlannedLora(key=name, scale=scale) for name, scale in self.scales.items()),
        )
        picture = None if self.picture is None else np.array(self.picture.convert("RGB"))
        return GenerationRequest(plan, picture, self.mask, {name: loras[name] for name in self.scales})


class Artist:
    """An engine with one checkpoint, as a context manager."""

    def __init__(
        self,
        variant: VariantName,
        source: str,
        precision: Precision,
        model: ModelSettings | None = None,
        loras: Mapping[str, Path] | None = None,
    ) -> None:
        pool = PoolSettings(model=variant, precision=precision)
        model = model or Settings().models[variant].model_copy(update={"source": source})
        self._engine = Engine(checkpoint.load_checkpoint(model, pool, None), pool)
        reader = StateDictConverter(checkpoint.read_geometry(model, None), max_rank=MAX_RANK)
        self._loras = {name: reader.convert(load_file(path), {}) for name, path in (loras or {}).items()}

    def __enter__(self) -> Self:
        self._engine.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.stop()

    def draw(self, orders: Sequence[Order]) -> list[Image.Image]:
        """The pictures in the order of the orders, which share the engine's passes. Raises what the engine says."""
        heard: SimpleQueue[tuple[int, EngineEvent]] = SimpleQueue()
        for place, order in enumerate(orders):
            self._engine.submit(order.job(self._loras), partial(_hear, heard, place))
        pictures: dict[int, Image.Image] = {}
        ended = 0
        while ended < len(orders):
            place, event = heard.get()
            if isinstance(event, ImageReady):
                pictures[place] = Image.fromarray(event.to_host())
            elif isinstance(event, Failed):
                raise event.error
            ended += isinstance(event, Completed | Canceled)
        return [pictures[place] for place in range(len(orders))]


def _hear(heard: "SimpleQueue[tuple[int, EngineEvent]]", place: int, event: EngineEvent) -> None:
    heard.put((place, event))

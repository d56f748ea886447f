"""Prepares LoRAs for their copy to a GPU in a thread of its own."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from serve.engine.lora_manager import LoraManager, stage_weights
from serve.engine.lora_storage import StagedLora
from serve.lora.weights import LoraWeights


class LoraStager:
    """Converts LoRAs to the layout of the slots, in pinned memory, so that the engine's thread only starts a copy.

    Converting takes more than a step of the transformer. For slots on a CPU there is nothing to gain, so it does
    nothing there.
    """

    def __init__(self, manager: LoraManager) -> None:
        self._manager = manager
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lora-staging")

    def start(self, weights: Mapping[str, LoraWeights]) -> dict[str, "Future[StagedLora]"]:
        """Starts to convert those LoRAs that are not on the device. May be called from any thread."""
        if self._manager.slots.device.type != "cuda":
            return {}
        return {
            key: self._thread.submit(stage_weights, self._manager.slots, lora)
            for key, lora in weights.items()
            if not self._manager.is_resident(key)
        }

    def stop(self) -> None:
        self._thread.shutdown(cancel_futures=True)

"""Wrappers of networks that observe calls, or raise an error in some of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from serve.engine.checkpoint import Checkpoint
from serve.engine.latents import LatentSpace
from serve.model_specs import Size

Condition = Callable[..., bool]


class Faulty:
    """Forwards to `network`. Calls of `method` raise `error` if `condition` returns true for their arguments."""

    def __init__(self, network: Any, condition: Condition, error: Exception, method: str = "__call__") -> None:
        self._network = network
        self._condition = condition
        self._error = error
        self._method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrap("__call__", self._network)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._wrap(name, getattr(self._network, name))

    def _wrap(self, name: str, original: Any) -> Any:
        if name != self._method:
            return original

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._condition(*args, **kwargs):
                raise self._error
            return original(*args, **kwargs)

        return call


def observed(network: Any, observe: Callable[[], object], method: str = "__call__") -> Any:
    """Forwards to `network`, and calls `observe` before each call of `method`."""

    def condition(*_: Any, **__: Any) -> bool:
        observe()
        return False

    return Faulty(network, condition, RuntimeError(), method)


def with_faulty_steps(checkpoint: Checkpoint, condition: Condition, error: Exception) -> Checkpoint:
    """Steps of the transformer raise `error` if `condition` returns true for their latents."""
    transformer: Any = Faulty(checkpoint.transformer, condition, error, method="x_embedder")
    return replace(checkpoint, transformer=transformer)


def is_first_step_of(checkpoint: Checkpoint, size: Size, *seeds: int) -> Condition:
    """Returns true for latents with the noise of one of the seeds: those of the first step of text to image."""
    space = LatentSpace(checkpoint)
    noises = [space.noise(torch.Generator().manual_seed(seed), space.grid(size))[0] for seed in seeds]
    return lambda latents: any(torch.equal(noise, image) for noise in noises for image in latents)


def first_call() -> Condition:
    """Returns true for the first call only."""
    calls = iter((True,))
    return lambda *_, **__: next(calls, False)

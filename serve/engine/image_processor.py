"""Encodes the prompt and the input image of a request, creates its images, and turns finished latents into pixels."""

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from serve.engine.checkpoint import Checkpoint
from serve.engine.denoiser import Denoiser
from serve.engine.latent_preview import LatentPreviewer, preview_steps
from serve.engine.latents import LatentSpace, add_noise, paste_kept_pixels
from serve.engine.prompt_encoder import PromptEncoder
from serve.engine.request_state import ImageState, InpaintLatents, RequestState
from serve.engine.sigmas import make_sigma_schedule
from serve.model_specs import Size
from serve.settings import PoolSettings


class ImageProcessor:
    """What happens to images before their first step and after their last one."""

    def __init__(self, checkpoint: Checkpoint, pool: PoolSettings, denoiser: Denoiser) -> None:
        self.prompt_encoder = PromptEncoder(checkpoint, pool.prompt_cache_entries)
        self.latent_space = LatentSpace(checkpoint)
        self.previewer = LatentPreviewer(self.latent_space)
        self._denoiser = denoiser
        self._noise_scheduler_config = checkpoint.noise_scheduler_config

    def tokens(self, size: Size) -> int:
        """Of an image, without text."""
        return self.latent_space.grid(size).tokens

    def encode_prompt(self, request: RequestState) -> None:
        """Encodes the prompt of a request and, without an input image, creates the request's images."""
        assert request.active_loras is not None
        request.encoded_prompt = self.prompt_encoder.encode(request.parameters.prompt, request.active_loras)
        if request.parameters.image is None:
            self._create(request, None)

    def encode_image(self, request: RequestState) -> None:
        """Encodes the input image of a request, and creates the request's images from it."""
        assert request.parameters.image is not None
        self._create(request, self.latent_space.encode(request.parameters.image))

    def decode(self, request: RequestState, image: ImageState) -> Tensor:
        """uint8 [height, width, 3] on the device."""
        parameters = request.parameters
        pixels = self.latent_space.decode(image.latents, image.grid, parameters.size)
        if parameters.image is None or parameters.mask is None:
            return pixels
        return paste_kept_pixels(pixels, parameters.image, parameters.mask)

    def _create(self, request: RequestState, posterior: DiagonalGaussianDistribution | None) -> None:
        """`posterior` is that of the input image."""
        assert request.encoded_prompt is not None
        assert request.active_loras is not None
        parameters, space = request.parameters, self.latent_space
        grid = space.grid(parameters.size)
        sigmas = make_sigma_schedule(self._noise_scheduler_config, grid.tokens, parameters.steps, parameters.strength)
        conditioning = self._denoiser.condition(
            request.encoded_prompt, space.img_ids(grid), sigmas, parameters.guidance, request.active_loras
        )
        mask = None if parameters.mask is None else space.pack_mask(parameters.mask)
        request.images = []
        for index, seed in enumerate(parameters.seeds):
            generator = torch.Generator("cpu").manual_seed(seed)
            # The sample is generated before the noise, as in diffusers: both come from the same generator.
            sample = None if posterior is None else space.sample(posterior, generator)
            noise = space.noise(generator, grid)
            image = ImageState(
                index=index,
                conditioning=conditioning,
                schedule=sigmas,
                grid=grid,
                latents=noise if sample is None else add_noise(sample, noise, sigmas.sigmas[0]),
                active_loras=request.active_loras,
                preview_steps=preview_steps(sigmas.steps, parameters.previews),
            )
            if sample is not None and mask is not None:
                image.inpaint = InpaintLatents(sample, noise, mask)
            request.images.append(image)

"""flux-serve: FLUX image generation on Ray Serve, with the API of Replicate's FLUX LoRA models.

The rooms, read from outside to inside: `deployment` wires, `ingress` answers HTTP, `api` speaks the faces,
`predictions` keeps a request's life, `media` fetches and encodes pictures, `plan` decides, `model_replica` works,
`engine` draws.
"""

__version__ = "0.1.0"

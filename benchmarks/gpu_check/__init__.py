"""Measures FLUX.1 on one GPU: `scripts/gpu-check`. Each part runs in a process of its own."""

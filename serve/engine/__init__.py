"""The image engine: loads checkpoints and generates images step by step. Uses torch, but neither Ray nor HTTP."""

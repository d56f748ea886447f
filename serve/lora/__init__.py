"""LoRAs from a caller's text to checked weights: reference, source, download, archive, header, formats.

Knows nothing of Ray, HTTP routes, predictions or the engine. Only what handles tensors imports torch.
"""

"""The engine room: the only one with torch. Checkpoints are loaded here, and pictures drawn step by step.

Knows neither Ray nor HTTP: benchmarks, notebooks and the tests against diffusers call it directly.
"""

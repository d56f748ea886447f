"""The parts of the GPU benchmark (`benchmarks/gpu.py`), each of which runs in a process of its own."""

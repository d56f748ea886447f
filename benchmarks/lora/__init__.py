"""Measures what LoRAs cost on a CPU: `scripts/bench lora`."""

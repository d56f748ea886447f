"""Evaluates the bundled models by what a recogniser reads in their images."""

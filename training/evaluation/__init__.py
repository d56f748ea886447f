"""Evaluates the quality of the small models: what a recognizer reads in their images."""

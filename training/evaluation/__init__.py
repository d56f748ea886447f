"""Evaluates the embedded models: a recogniser scores whether their images match the prompts."""

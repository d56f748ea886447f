"""The HTTP APIs: Replicate's, Cog's, and the finished images as files."""

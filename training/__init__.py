"""How the embedded checkpoints came to be: drawings made by code, and the training of every part. Not imported by the service."""

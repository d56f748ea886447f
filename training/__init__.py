"""How the embedded checkpoints came to be: drawings made by code, and the training. The service imports none of it."""

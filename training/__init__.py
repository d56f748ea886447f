"""How the embedded checkpoints came to be: drawings made by code, the training of every part. The service imports none."""

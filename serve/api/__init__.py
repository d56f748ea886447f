"""The faces of the service: one file each, routes of Starlette over the desk of `serve.predictions`."""

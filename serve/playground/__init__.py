"""The static files of the playground: plain JavaScript modules, without a build step."""

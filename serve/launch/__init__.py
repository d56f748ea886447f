"""Starting the service: config file, foreground process, child process."""

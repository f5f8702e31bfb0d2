"""The watcher: repository, serving folder, registration."""

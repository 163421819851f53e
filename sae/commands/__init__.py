"""One module a command: its configuration, its checks, and one call of the craft behind it."""

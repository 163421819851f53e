"""The commands: one verb a file, a configuration, its checks, and one call of a craft."""

"""One run from its configuration to its summary: the only room with time, signals and screens."""

"""Published extraction methods, one file each."""

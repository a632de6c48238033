"""Environments, one file each; the file's name is the environment's name."""

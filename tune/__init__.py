"""Sweeps and their search spaces."""

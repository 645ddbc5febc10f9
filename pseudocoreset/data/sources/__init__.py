"""Data sets by name: downloads, builders, images left on disk."""

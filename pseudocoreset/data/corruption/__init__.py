"""Corruptions of images, and the distortions that they are made of."""

"""Faster ways to the same vectors, each beside the plain modules that it is compared with."""

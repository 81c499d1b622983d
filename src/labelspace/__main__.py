"""``python -m labelspace``."""

from .cli import run

run()

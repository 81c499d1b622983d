"""``python -m labelspace``."""

from .cli.app import run

run()

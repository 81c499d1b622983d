"""The command line: arguments in, tables out; what a command needs is loaded when it runs."""

from .app import COMMANDS, GROUPS, MEMORY_COMMANDS, main, run

__all__ = ["COMMANDS", "GROUPS", "MEMORY_COMMANDS", "main", "run"]

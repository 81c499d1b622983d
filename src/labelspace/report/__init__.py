"""What one or several runs are worth, as plain values and as one HTML page."""

from .measuring import measure

__all__ = ["measure"]

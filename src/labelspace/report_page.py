"""A report as one HTML page: the public names of `report.page`."""

from .report.page import render

__all__ = ["render"]

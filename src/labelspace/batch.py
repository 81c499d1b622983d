"""Predictions of a file of any length: the public names of `model.batch`."""

from .model.batch import check_out, joined, predict_blocks, predict_file, write_blocks

__all__ = ["check_out", "joined", "predict_blocks", "predict_file", "write_blocks"]

"""Scores -> probabilities: the public names of `evaluation.calibration`."""

from .evaluation.calibration import (
    Calibration,
    at_thresholds,
    best_threshold,
    calibration_error,
    fit,
    log_loss,
    reliability,
)

__all__ = ["Calibration", "at_thresholds", "best_threshold", "calibration_error", "fit", "log_loss", "reliability"]

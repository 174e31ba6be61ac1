"""Thresholds for the sums of embedding bags with a stated false-alarm rate.

Fault-free calls -> `_samples`, residuals of each table -> `_scale`, how they grow with the bag -> `_tail`, their
distribution -> `_calibrate`, the threshold -> `_result`, what it states, watches and saves.
"""

from sedq.calibration._calibrate import calibrate_thresholds
from sedq.calibration._result import HeldOut, TableRange, ThresholdCalibration
from sedq.calibration._tail import Tail

__all__ = ["HeldOut", "TableRange", "Tail", "ThresholdCalibration", "calibrate_thresholds"]

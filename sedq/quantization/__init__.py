"""Quantisation: parameters and codes, and observers that choose parameters for sample data.

Observers differ in the range they choose: `MinMaxObserver` all that was seen, `MovingAverageObserver` that of a typical
batch, `PercentileObserver` without a share of outliers, `HistogramObserver` the range of least squared error.
"""

from sedq.quantization._histogram import HistogramObserver
from sedq.quantization._minmax import MinMaxObserver, MovingAverageObserver
from sedq.quantization._percentile import PercentileObserver
from sedq.quantization._qparams import LIMITS, QParams, choose_qparams, dequantize, dtype_name, quantize

__all__ = [
    "LIMITS",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageObserver",
    "PercentileObserver",
    "QParams",
    "choose_qparams",
    "dequantize",
    "dtype_name",
    "quantize",
]

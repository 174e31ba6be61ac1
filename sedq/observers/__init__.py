"""Observers watch sample data and choose quantisation parameters for it.

They differ in the range they choose: `MinMaxObserver` all that was seen, `MovingAverageObserver` that of a typical batch,
`PercentileObserver` without a share of outliers, `HistogramObserver` the one of least squared error.
"""

from sedq.observers.histogram import HistogramObserver
from sedq.observers.histogram import _Histogram as _Histogram  # older pickles of observers know it by this name
from sedq.observers.minmax import MinMaxObserver, MovingAverageObserver
from sedq.observers.percentile import PercentileObserver
from sedq.observers.percentile import _LogHistogram as _LogHistogram  # this too

__all__ = ["HistogramObserver", "MinMaxObserver", "MovingAverageObserver", "PercentileObserver"]

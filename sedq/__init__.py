"""Quantised inference for recommendation models, with soft-error detection built in.

int8 matrix products and embedding bags on the CPU, each of which checks what it computed. Start with `pack_weights` and
`qlinear`, `EmbeddingBag`, `QuantizedLinear`, or the whole `DLRM`.
"""

try:
    import sedq._core._dispatch  # noqa: F401 - the first to need what is compiled
except ModuleNotFoundError as error:
    if error.name is None or not error.name.startswith("sedq._core"):
        raise
    raise ImportError(
        "sedq is not built here: this is its source tree, whose compiled modules are missing. Run 'pip install .' in it "
        "and import sedq from another directory, or 'pip install --no-build-isolation --editable .' to work on it."
    ) from None

from sedq import datasets, faults, files
from sedq._config import Settings, config_context, get_config, set_config
from sedq._info import show_versions, versions
from sedq.calibration import ThresholdCalibration, calibrate_thresholds
from sedq.detection import Event, Monitor, monitor
from sedq.embedding import EmbeddingBag, EmbeddingBagCollection, IndexBatch, ScrubReport, StoredTable
from sedq.exceptions import CalibrationWarning, ModelFileError, SedqWarning, SoftErrorDetected, SoftErrorWarning
from sedq.linear import (
    PackedWeights,
    QuantizedLinear,
    WeightsReport,
    matmul_integer,
    pack_weights,
    qlinear,
    qlinear_dynamic,
)
from sedq.models import DLRM
from sedq.quantization import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    PercentileObserver,
    QParams,
    choose_qparams,
    dequantize,
    quantize,
)

__all__ = [
    "DLRM",
    "CalibrationWarning",
    "EmbeddingBag",
    "EmbeddingBagCollection",
    "Event",
    "HistogramObserver",
    "IndexBatch",
    "MinMaxObserver",
    "ModelFileError",
    "Monitor",
    "MovingAverageObserver",
    "PackedWeights",
    "PercentileObserver",
    "QParams",
    "QuantizedLinear",
    "ScrubReport",
    "SedqWarning",
    "Settings",
    "SoftErrorDetected",
    "SoftErrorWarning",
    "StoredTable",
    "ThresholdCalibration",
    "WeightsReport",
    "__version__",
    "calibrate_thresholds",
    "choose_qparams",
    "config_context",
    "datasets",
    "dequantize",
    "faults",
    "files",
    "get_config",
    "matmul_integer",
    "monitor",
    "pack_weights",
    "qlinear",
    "qlinear_dynamic",
    "quantize",
    "set_config",
    "show_versions",
    "versions",
]

__version__ = versions()["sedq"]

"""Quantised inference for recommendation models, with soft-error detection built in.

int8 matrix products and embedding bags on the CPU, each of which checks what it computed. Start with `pack_weights` and
`qlinear`, `EmbeddingBag`, `QuantizedLinear`, or the whole `DLRM`.
"""

from typing import TYPE_CHECKING

try:
    import sedq._core._dispatch  # noqa: F401 - the first compiled module that anything needs
except ModuleNotFoundError as error:
    if error.name is None or not error.name.startswith("sedq._core"):
        raise
    raise ImportError(
        "This directory holds the source of sedq, without the compiled modules, and it hides the installed package: "
        "Python looks for packages in the current directory first. If you ran 'pip install .', start Python in another "
        "directory. To work on the source, run 'pip install --no-build-isolation --editable .' and import sedq from here."
    ) from None

from sedq._config import Settings, config_context, get_config, set_config
from sedq._info import show_versions, versions
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

if TYPE_CHECKING:
    from sedq import datasets, faults, files
    from sedq.calibration import ThresholdCalibration, calibrate_thresholds
    from sedq.models import DLRM

    __version__: str
else:
    # Imported when they are first used: with SciPy they take several times as long to import as all the rest.
    _SUBPACKAGES = ("calibration", "datasets", "faults", "files", "models")
    _SUBPACKAGE_OF = {"DLRM": "models", "ThresholdCalibration": "calibration", "calibrate_thresholds": "calibration"}

    def __getattr__(name):
        from importlib import import_module, metadata

        if name == "__version__":
            value = metadata.version("sedq")
        elif name in _SUBPACKAGES:
            value = import_module(f"sedq.{name}")
        elif name in _SUBPACKAGE_OF:
            value = getattr(import_module(f"sedq.{_SUBPACKAGE_OF[name]}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__, *_SUBPACKAGES})


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

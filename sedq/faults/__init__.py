"""Injection of faults: flipped bits in stored data, in accumulators, and in activations between layers; campaigns of many.

For tests, demonstrations and campaigns. Faults inside kernels use a second build of the kernels that has a hook; nothing
here slows or changes the ordinary one.
"""

from importlib import import_module
from typing import Any

from sedq.faults._campaign import Campaign, CampaignPlan
from sedq.faults._inject import accumulator_fault, activation_fault, count_visits, flip_bit, flip_row_bit, flip_weight_bit
from sedq.faults._models import (
    BitFlip,
    Burst,
    Carry,
    Dummy,
    FaultModel,
    KBits,
    PairedError,
    RandomValue,
    StuckAt0,
    StuckAt1,
    Zero,
    default_models,
)
from sedq.faults._result import CampaignResult, schema
from sedq.faults._sites import site_names
from sedq.faults._worker import InvalidRun

__all__ = [
    "BitFlip",
    "Burst",
    "Campaign",
    "CampaignPlan",
    "CampaignResult",
    "Carry",
    "Dummy",
    "FaultModel",
    "InvalidRun",
    "KBits",
    "PairedError",
    "RandomValue",
    "StuckAt0",
    "StuckAt1",
    "Zero",
    "accumulator_fault",
    "activation_fault",
    "count_visits",
    "default_models",
    "flip_bit",
    "flip_row_bit",
    "flip_weight_bit",
    "schema",
    "site_names",
]


def __getattr__(name: str) -> Any:
    if name == "live":  # needed by few
        return import_module("sedq.faults.live")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

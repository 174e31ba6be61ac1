"""Injection of faults: flipped bits in stored data, in accumulators, and in activations between layers.

For tests, demonstrations and campaigns. Faults in accumulators use a second build of the kernels that has a hook; nothing
here slows or changes the ordinary one.
"""

from sedq.faults.inject import (
    accumulator_fault,
    activation_fault,
    count_visits,
    flip_bit,
    flip_row_bit,
    flip_weight_bit,
)

__all__ = [
    "accumulator_fault",
    "activation_fault",
    "count_visits",
    "flip_bit",
    "flip_row_bit",
    "flip_weight_bit",
]

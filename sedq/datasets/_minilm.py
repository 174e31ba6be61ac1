"""One trained weight matrix of a sentence encoder, to measure quantisers on."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt

__all__ = ["MiniLM", "load_minilm"]


@dataclass(frozen=True, eq=False)
class MiniLM:
    """A weight matrix, int8 with a scale for each output; see `load_minilm`.

    Attributes
    ----------
    codes : (outputs, inputs) int8 array
        Symmetric, from -127 to 127.
    scale : (outputs,) float32 array
        Size of a step for each output.
    """

    codes: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]

    def weight(self) -> npt.NDArray[np.float32]:
        """Return ``codes * scale``, (outputs, inputs) float32."""
        return np.asarray(self.codes * self.scale[:, None], dtype=np.float32)


def load_minilm() -> MiniLM:
    """Load the packaged weights of MiniLM: the query projection of the first layer of all-MiniLM-L6-v2.

    Returns
    -------
    MiniLM

    Notes
    -----
    The weights come as int8 codes with a scale for each output, so that what is between the codes is not known: symmetric
    parameters for each output, from the smallest and largest value, represent them all but exactly.

    They are under the Apache License 2.0; see ``LICENSE-minilm.md`` beside this module.

    Examples
    --------
    >>> from sedq.datasets import load_minilm
    >>> weights = load_minilm()
    >>> weights.codes.shape, weights.weight().dtype
    ((384, 384), dtype('float32'))
    """
    path = resources.files("sedq.datasets").joinpath("minilm.npz")
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return MiniLM(file["codes"], file["scale"])

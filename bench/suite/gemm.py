"""int8 layers: one row, a batch, and a product that is large enough to be bound by arithmetic."""

import numpy as np

import sedq


class Linear:
    """`sedq.qlinear`, uint8 in and out."""

    params = ([(1, 1024, 256), (20, 2048, 256), (256, 1024, 1024)], ["off", "exact", "full", "mod127"])
    param_names = ("m, n, k", "check")

    def setup(self, shape: tuple[int, int, int], check: str) -> None:
        m, n, k = shape
        rng = np.random.default_rng(0)
        self.x = rng.integers(0, 256, (m, k), dtype=np.uint8)
        w = rng.integers(-128, 128, (n, k), dtype=np.int8)
        self.packed = sedq.pack_weights(w, np.full(n, 0.01), bias=np.zeros(n), encode=("exact", "mod127"))
        self.run(check)  # derives the parameters

    def run(self, check: str) -> np.ndarray:
        return sedq.qlinear(
            self.x,
            self.packed,
            x_scale=0.02,
            x_zero_point=128,
            y_scale=0.5,
            y_zero_point=128,
            check=check,
            num_threads=1,
        )

    def time_qlinear(self, shape: tuple[int, int, int], check: str) -> None:
        self.run(check)


class Weights:
    """What is done once, or at rest."""

    def setup(self) -> None:
        self.w = np.random.default_rng(0).integers(-128, 128, (1024, 1024), dtype=np.int8)
        self.packed = sedq.pack_weights(self.w)

    def time_pack(self) -> None:
        sedq.pack_weights(self.w)

    def time_verify(self) -> None:
        self.packed.verify()

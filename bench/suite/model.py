"""The packaged model: a batch of requests, saving and loading."""

import tempfile
from pathlib import Path

import sedq


def quantised() -> sedq.DLRM:
    data = sedq.datasets.load_msweb()
    c = data.calibration
    model = sedq.DLRM(data.bottom, data.tables, data.top, data.modes)
    return model.quantize((c.dense, c.indices, c.offsets), include_last_offset=True)


class Model:
    """A call of `sedq.DLRM`."""

    params = ([64, 512], ["off", "exact", "full"])
    param_names = ("requests", "check")

    def setup(self, requests: int, check: str) -> None:
        self.model = quantised()
        self.requests = sedq.datasets.load_msweb().heldout.batch(0, requests)

    def time_model(self, requests: int, check: str) -> None:
        r = self.requests
        self.model(r.dense, r.indices, r.offsets, include_last_offset=True, check=check, num_threads=1)


class File:
    """Model files."""

    def setup(self) -> None:
        self.model = quantised()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "model.npz"
        self.model.save(self.path)

    def teardown(self) -> None:
        self.folder.cleanup()

    def time_save(self) -> None:
        self.model.save(self.path)

    def time_load(self) -> None:
        sedq.DLRM.load(self.path)

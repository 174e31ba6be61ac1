"""Train the DLRM that `sedq.datasets.load_msweb` returns, and write its packaged file.

Usage::

    python bench/train_msweb.py --data DIR_WITH_RAW_FILES --out sedq/datasets/msweb.npz --seed 0

The directory holds ``anonymous-msweb.data`` and ``anonymous-msweb.test`` as the UCI Machine Learning
Repository distributes them.  The same seed gives the same arrays with the same PyTorch on the same
kind of machine.
"""

from __future__ import annotations

import argparse
import copy
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import sedq
from sedq.datasets import Requests, auc, load_msweb
from sedq.datasets._msweb import DENSE_NAMES, TABLE_NAMES, FeatureSpace, feature_space, requests
from sedq.datasets._msweb_files import RawMSWeb, parse
from sedq.datasets._requests import Bags, IntArray

DIM = 32
BOTTOM = (64, DIM)
TOP = (128, 64, 1)
MODES = ("sum",) * len(TABLE_NAMES)
EPOCHS = 8
BATCH = 1024
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1
DROPOUT = 0.1
TRAIN_NEGATIVES = 2
VALIDATION_USERS = 3000
CALIBRATION_REQUESTS = 1024
POPULAR_SHARE = 0.5


class DLRM(nn.Module):
    """Bottom MLP and embedding bags, pairwise dot products, top MLP with one logit."""

    left: torch.Tensor
    right: torch.Tensor

    def __init__(self, n_dense: int, table_rows: list[int]) -> None:
        super().__init__()
        self.bottom = mlp((n_dense, *BOTTOM))
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(rows, DIM, mode=mode, include_last_offset=True)
            for rows, mode in zip(table_rows, MODES, strict=True)
        )
        for parameter in self.tables.parameters():
            nn.init.normal_(parameter, std=0.05)
        left, right = np.tril_indices(1 + len(table_rows), -1)
        self.top = mlp((DIM + len(left), *TOP), DROPOUT)
        self.register_buffer("left", torch.from_numpy(left))
        self.register_buffer("right", torch.from_numpy(right))

    def forward(self, batch: Requests) -> torch.Tensor:
        """Return one logit per request."""
        bottom = self.bottom(torch.from_numpy(batch.dense))
        bags = [
            table(torch.from_numpy(indices), torch.from_numpy(offsets))
            for table, indices, offsets in zip(self.tables, batch.indices, batch.offsets, strict=True)
        ]
        vectors = torch.stack([bottom, *bags], dim=1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.left, self.right]
        logits: torch.Tensor = self.top(torch.cat([bottom, dots], dim=1)).squeeze(1)
        return logits


def mlp(sizes: tuple[int, ...], dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with ReLU between them and none after the last."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])


@torch.no_grad()
def predict(model: DLRM, data: Requests) -> npt.NDArray[np.float32]:
    """Return the probabilities the model gives."""
    model.eval()
    return np.asarray(torch.sigmoid(model(data)).numpy(), dtype=np.float32)


def shuffled_batches(data: Requests, rng: np.random.Generator) -> list[Requests]:
    """Cut the requests, in random order, into batches."""
    order = rng.permutation(len(data))
    bags = [Bags(i, o).take(order) for i, o in zip(data.indices, data.offsets, strict=True)]
    indices, offsets = [b.indices for b in bags], [b.offsets for b in bags]
    mixed = Requests(data.dense[order], indices, offsets, data.labels[order])
    return [mixed.batch(start, start + BATCH) for start in range(0, len(mixed), BATCH)]


def heldout_requests(
    users: list[IntArray], space: FeatureSpace, rng: np.random.Generator, popular_share: float = POPULAR_SHARE
) -> Requests:
    """Make requests by the held-out protocol, which validation follows too."""
    return requests(users, space, rng, min_visits=2, max_positives=2, popular_share=popular_share)


def train(users: list[IntArray], space: FeatureSpace, rng: np.random.Generator) -> DLRM:
    """Train with fresh negatives each epoch; keep the epoch best on users set apart."""
    order = rng.permutation(len(users))
    validation = heldout_requests([users[i] for i in order[:VALIDATION_USERS]], space, rng)
    rest = [users[i] for i in order[VALIDATION_USERS:]]
    model = DLRM(len(DENSE_NAMES), space.table_rows())
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)
    # Every epoch has as many requests; only their candidates differ.
    n_requests = sum(map(len, rest)) * (1 + TRAIN_NEGATIVES)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=EPOCHS * -(-n_requests // BATCH))
    best, best_state = 0.0, copy.deepcopy(model.state_dict())
    for epoch in range(EPOCHS):
        data = requests(rest, space, rng, negatives=TRAIN_NEGATIVES, popular_share=POPULAR_SHARE)
        model.train()
        for batch in shuffled_batches(data, rng):
            target = torch.from_numpy(batch.labels).float()
            loss = nn.functional.binary_cross_entropy_with_logits(model(batch), target)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        score = auc(validation.labels, predict(model, validation))
        print(f"epoch {epoch + 1}: validation AUC {score:.4f}", flush=True)
        if score > best:
            best, best_state = score, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)
    return model


def calibration_requests(users: list[IntArray], space: FeatureSpace, rng: np.random.Generator) -> Requests:
    """Sample training users and make one positive and one negative request of each."""
    chosen = rng.choice(len(users), size=CALIBRATION_REQUESTS // 2, replace=False)
    return requests([users[i] for i in chosen], space, rng, max_positives=1, popular_share=POPULAR_SHARE)


def model_arrays(model: DLRM) -> dict[str, npt.NDArray[Any]]:
    """Return the weights under the names of the packaged file."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for prefix, layers in (("bottom", model.bottom), ("top", model.top)):
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        for number, layer in enumerate(linear):
            arrays[f"{prefix}_{number}_weight"] = layer.weight.detach().numpy()
            arrays[f"{prefix}_{number}_bias"] = layer.bias.detach().numpy()
    for number, table in enumerate(model.tables.parameters()):
        arrays[f"table_{number}_weight"] = table.detach().numpy()
    return arrays


def request_arrays(prefix: str, data: Requests) -> dict[str, npt.NDArray[Any]]:
    """Return requests under the names of the packaged file, in the narrowest types that hold them."""
    arrays: dict[str, npt.NDArray[Any]] = {f"{prefix}_dense": data.dense, f"{prefix}_labels": data.labels}
    for table, (indices, offsets) in enumerate(zip(data.indices, data.offsets, strict=True)):
        arrays[f"{prefix}_indices_{table}"] = narrow(indices, np.int16)
        arrays[f"{prefix}_offsets_{table}"] = narrow(offsets, np.int32)
    return arrays


def narrow(values: IntArray, dtype: type[np.signedinteger[Any]]) -> npt.NDArray[Any]:
    """Cast, refusing to lose anything."""
    cast = values.astype(dtype)
    if not np.array_equal(cast, values):
        raise OverflowError(f"values do not fit {dtype.__name__}")
    return cast


def save(path: Path, model: DLRM, raw: RawMSWeb, space: FeatureSpace, heldout: Requests, calibration: Requests) -> None:
    """Write the packaged file."""
    arrays: dict[str, Any] = {
        "format_version": np.array(1),
        "table_modes": np.array(MODES),
        "table_names": np.array(TABLE_NAMES),
        "dense_names": np.array(DENSE_NAMES),
        "dense_mean": space.dense_mean,
        "dense_std": space.dense_std,
        "popularity": narrow(space.popularity, np.int32),
        "area_titles": raw.titles,
        "area_urls": raw.urls,
        "heldout_candidate": narrow(heldout.indices[3], np.int16),
        **model_arrays(model),
        **request_arrays("heldout", heldout),
        **request_arrays("calibration", calibration),
    }
    np.savez_compressed(path, **arrays)


def report(name: str, data: Requests, space: FeatureSpace, model: DLRM) -> None:
    """Print the AUC of the popularity baseline and of the model."""
    baseline = auc(data.labels, space.popularity[data.indices[3]])
    score = auc(data.labels, predict(model, data))
    print(f"{name}: {len(data)} requests, AUC popularity {baseline:.6f}, float model {score:.6f}")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the DLRM of sedq.datasets.load_msweb.")
    parser.add_argument("--data", type=Path, required=True, help="directory of the raw files")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train, report and write."""
    options = arguments()
    start = time.perf_counter()
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)
    # The order of float sums depends on the number of threads; one makes it the same everywhere.
    torch.set_num_threads(1)
    # One generator per purpose: changing the training leaves the held-out requests as they are.
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(options.seed).spawn(5)]

    raw = parse(options.data / "anonymous-msweb.data", options.data / "anonymous-msweb.test")
    space = feature_space(raw.titles, raw.urls, raw.train_users)
    heldout = heldout_requests(raw.test_users, space, streams[0])
    calibration = calibration_requests(raw.train_users, space, streams[1])
    model = train(raw.train_users, space, streams[2])

    save(options.out, model, raw, space, heldout, calibration)
    report("held-out", heldout, space, model)
    for share, name in ((0.0, "uniform negatives only"), (1.0, "popular negatives only")):
        other = heldout_requests(raw.test_users, space, streams[3], share)
        report(f"same protocol, {name}", other, space, model)
    packaged = load_msweb(options.out)
    exact = sedq.DLRM(packaged.bottom, packaged.tables, packaged.top, packaged.modes)
    r = packaged.heldout
    score = auc(r.labels, exact.predict_float(r.dense, r.indices, r.offsets, include_last_offset=True))
    print(f"packaged file in NumPy: AUC {score:.6f}, {options.out.stat().st_size} bytes")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()

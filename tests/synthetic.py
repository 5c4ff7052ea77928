"""Cells made from nothing: seeded, contract-conforming, with any curve. For the tests of the reading wing."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from drift import dataset
from drift.dataset.contract import FLOORS

ROUNDOFF = {"bf16": 2.0**-8, "fp16": 2.0**-11, "tf32": 2.0**-11, "fp32": 2.0**-24, "fp64": 2.0**-53}
FAMILIES = {"smollm2-135m-instruct": "Llama", "qwen2.5-coder-0.5b-instruct": "Qwen", "gemma-3-270m": "Gemma"}
LAYERS = {"smollm2-135m-instruct": 30, "qwen2.5-coder-0.5b-instruct": 24, "gemma-3-270m": 18}
#: drift of the literal fold after the final norm, as measured on the real checkpoints
APPEND = {"bf16": 1.3e-2, "fp16": 1.7e-3, "tf32": 1.7e-3, "fp32": 8e-7, "fp64": 2e-15}
#: options of the smallest cell that has everything: more than one of each axis, and a shorter last chunk
SMALL = {"model": "tiny", "layers": 2, "documents": 2, "tokens": 40, "chunk_size": 16}

Curve = Callable[[np.ndarray], np.ndarray]


def curve(protocol: str, dtype: str) -> Curve:
    """Return final-layer drift as a function of the step, shaped like the real one."""
    if protocol.startswith("restart"):
        return lambda step: np.where(step == 0, APPEND[dtype], 0.67)
    if protocol.startswith("reprime"):
        return lambda step: np.where(step == 0, APPEND[dtype], 0.18 - 0.07 * np.exp(-step / 5.0))
    return lambda step: np.full(step.shape, APPEND[dtype])


def arrays(
    level: np.ndarray, *, layers: int, tokens: np.ndarray, dtype: str, rng: np.random.Generator, noise: float
) -> dict[str, np.ndarray]:
    """Return every variable of the contract for a final-layer drift `level` [step]; `noise` is a log-normal sigma."""
    documents, steps = level.shape
    depth = np.concatenate([[0.0], np.linspace(0.05, 0.9, layers) ** 1.3, [1.0]])
    jitter = np.exp(noise * rng.standard_normal((documents, layers + 2, steps)))
    jitter[:, -1, :] = 1.0  # the final layer follows `level` exactly
    hidden = level[:, None, :] * depth[None, :, None] * jitter
    spread = np.exp(np.array([-2.2, -1.6, -1.0, -0.5, -0.1, 0.4, 0.8, 1.6, 2.6]))
    kl = np.minimum(0.9 * level**1.5, 4.0)
    nll = 2.5 + 0.2 * rng.standard_normal((documents, steps))
    count = np.broadcast_to(tokens, (documents, steps)).astype(np.int64)
    target = count.copy()
    target[:, -1] -= 1
    block = hidden[:, :layers, :] * 1.1 + 1e-3 * level[:, None, :]
    known = {
        "hidden_rel_l2": hidden,
        "hidden_cosine_distance": np.minimum(hidden**2 / 2, 2.0),
        "hidden_max_abs": hidden * 30,
        "hidden_norm": 100.0 + 50 * depth[None, :, None] + np.zeros_like(hidden),
        "nonfinite_count": np.zeros(hidden.shape, dtype=np.int64),
        "hidden_rel_l2_token": hidden[..., None] * spread,
        "key_rel_l2": block * 0.7,
        "value_rel_l2": block,
        "logit_kl": kl,
        "logit_js": np.minimum(kl / 4, 0.6),
        "logit_rel_l2": level * 0.8,
        "logit_max_abs": level * 20,
        "top1_agreement": np.clip(1 - 1.2 * level, 0, 1),
        "delta_p_rms": np.clip(level * 0.3, 0, 1),
        "nll_full": nll,
        "nll_fold": nll + 2 * level**1.5 + 1e-2 * np.minimum(level, 1) * rng.standard_normal((documents, steps)),
        "logit_nonfinite_count": np.zeros((documents, steps), dtype=np.int64),
        "logit_count": count,
        "target_count": target,
        "cache_bytes": np.cumsum(count, axis=1) * (2 if dtype in ("bf16", "fp16") else 4) * layers * 384,
        "logit_kl_token": kl[..., None] * spread,
    }
    sizes = {"document": documents, "layer": layers + 2, "block": layers, "step": steps, "quantile": len(spread)}
    new = [name for name, row in dataset.VARIABLES.items() if name not in known and not row.optional]
    return known | {name: follow(level, dataset.VARIABLES[name], sizes) for name in new}


def follow(level: np.ndarray, row: dataset.Variable, sizes: dict[str, int]) -> np.ndarray:
    """Return values of a variable that nothing is known of here: `level` [document, step], within its bounds."""
    if row.dtype != "float64":
        return np.zeros([sizes[dim] for dim in row.dims], dtype=row.dtype)
    axes = [slice(None) if dim in ("document", "step") else None for dim in row.dims]
    values = np.clip(level[tuple(axes)], row.lower, row.upper)
    return np.broadcast_to(values, [sizes[dim] for dim in row.dims]).copy()


def attrs(config: object, **overrides: object) -> dict[str, object]:
    """Return provenance that is complete."""
    return {
        "config_json": dataset.canonical_json(config),
        "config_sha256": dataset.content_hash(config),
        "drift_version": "0.1.0",
        "git_commit": "0" * 40,
        "git_dirty": False,
        "versions_json": {"python": "3.11.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "device_name": "synthetic",
        "driver": "none",
        "threads": 2,
        "numerics_json": {"deterministic": True, "half_matmul": "native"},
        "checkpoint_sha256": "a" * 64,
        "tokens_sha256": "b" * 64,
        "seed": 0,
        "created_at": "2026-01-01T00:00:00+00:00",
        "elapsed_s": 1.5,
        "bos_token_id": -1,
        "logit_stride": 1,
    } | overrides


def cell(
    *,
    model: str = "smollm2-135m-instruct",
    dtype: str = "bf16",
    protocol: str = "append",
    chunk_size: int = 64,
    tokens: int = 1024,
    documents: int = 2,
    layers: int | None = None,
    level: Curve | None = None,
    noise: float = 0.1,
    seed: int = 0,
    floor: Curve | None = None,
    draws: Sequence[int] = (1, 2),
    recurrent: bool = False,
) -> xr.Dataset:
    """Return one cell. `level` and `floor` map steps (float array) to final-layer drift and its floor, noiseless.

    One that is `recurrent` is of a model whose first block carries states alone, and whose others carry all there is.
    """
    config = {"model": model, "dtype": dtype, "protocol": protocol, "chunk_size": chunk_size, "tokens": tokens}
    rng = np.random.default_rng([seed, zlib.crc32(dataset.canonical_json(config).encode())])
    start = np.arange(0, tokens, chunk_size)
    stop = np.minimum(start + chunk_size, tokens)
    base = (level or curve(protocol, dtype))(np.arange(len(start), dtype=float))
    # a structural drift is a property of the text, not of the rounding: it varies much less
    sigma = np.where(base > 0.05, noise * 0.3, noise)
    drift = base * np.exp(sigma * rng.standard_normal((documents, len(start))))
    depth = layers or LAYERS.get(model, 4)
    variables = arrays(drift, layers=depth, tokens=stop - start, dtype=dtype, rng=rng, noise=noise)
    if recurrent:
        variables["state_rel_l2"] = 0.5 * variables["value_rel_l2"]
        variables |= {name: np.where(_first(depth), np.nan, variables[name]) for name in ("key_rel_l2", "value_rel_l2")}
    if floor is not None:
        under = floor(np.arange(len(start), dtype=float))
        spread = np.exp(noise * rng.standard_normal((len(draws), documents, len(start))))
        drawn = [
            arrays(under * s, layers=depth, tokens=stop - start, dtype=dtype, rng=rng, noise=noise) for s in spread
        ]
        if recurrent:
            drawn = [one | {"state_rel_l2": 0.5 * one["value_rel_l2"]} for one in drawn]
        held = [name for name in FLOORS if name in variables]
        variables |= {FLOORS[name]: np.stack([one[name] for one in drawn], axis=-1) for name in held}
    return dataset.build(
        variables,
        scalars={
            "model": model,
            "family": FAMILIES.get(model, "Llama"),
            "dtype": dtype,
            "unit_roundoff": ROUNDOFF[dtype],
            "chunk_size": chunk_size,
            "protocol": protocol,
            "reference": "full",
            "attn_implementation": "sdpa",
            "device": "cpu",
        },
        token_start=start,
        token_stop=stop,
        attrs=attrs(config, seed=seed),
        draws=draws,
        carries=["states", *["keys, values and states"] * (depth - 1)] if recurrent else (),
    )


def _first(blocks: int) -> np.ndarray:
    """Which block is the first: [1, block, 1]."""
    return (np.arange(blocks) == 0)[None, :, None]


def cells(
    models: Sequence[str] = tuple(FAMILIES),
    dtypes: Sequence[str] = ("bf16", "fp32"),
    protocols: Sequence[str] = ("append", "reprime", "restart"),
    chunk_sizes: Sequence[int] = (64, 128, 256, 512),
    **options: object,
) -> list[xr.Dataset]:
    """Return the grid of cells."""
    return [
        cell(model=m, dtype=d, protocol=p, chunk_size=c, **options)  # type: ignore[arg-type]
        for m in models
        for d in dtypes
        for p in protocols
        for c in chunk_sizes
    ]


def sweep(folder: Path, *args: object, **options: object) -> Path:
    """Write the grid of cells into `folder`."""
    for ds in cells(*args, **options):  # type: ignore[arg-type]
        s = {name: ds[name].item() for name in ("model", "dtype", "protocol", "chunk_size")}
        name = f"{s['model']}_{s['dtype']}_{s['protocol']}_c{s['chunk_size']}_{ds.attrs['config_sha256'][:16]}.nc"
        dataset.write(ds, folder / name)
    return folder

"""Control, gold and disturbed cells made from nothing: what a sweep with everything in it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import synthetic
import xarray as xr

from drift import dataset

FLOOR = 3.0  # of the floor, in unit roundoffs
GAIN = 0.8  # response to noise of size 1
SHIFTED = 0.2  # level of the planted bug
PARTS = ("structural", "full_rounding", "fold_rounding")


def remake(ds: xr.Dataset, *, control: str = "", **more: Any) -> xr.Dataset:
    """Give a cell other scalars, variables and hash."""
    scalars = {n: ds[n].item() for n in dataset.SCALARS} | {k: v for k, v in more.items() if k in dataset.SCALARS}
    variables = {str(n): ds[n].values for n in ds.data_vars}
    variables |= {k: v for k, v in more.items() if k in dataset.VARIABLES}
    attrs = dict(ds.attrs) | ({"control": control} if control else {})
    for name in ("config_sha256", "title", "schema_version", "Conventions"):
        attrs.pop(name)
    attrs["config_json"] = dataset.canonical_json({**scalars, "control": control, "tokens": int(ds["token_stop"][-1])})
    return dataset.build(
        variables,
        scalars=scalars,
        token_start=ds["token_start"].values,
        token_stop=ds["token_stop"].values,
        attrs=attrs,
        draws=ds["draw"].values if "draw" in ds.coords else (),
    )


def set_drift(ds: xr.Dataset, drift: np.ndarray) -> xr.Dataset:
    """Make every distance of a cell follow `drift` [document, step]: exactly zero where it is zero."""
    for name in ("hidden_rel_l2", "key_rel_l2", "value_rel_l2", "hidden_max_abs"):
        ds[name].values[...] = drift[:, None, :]
    ds["hidden_rel_l2_token"].values[...] = drift[:, None, :, None]
    ds["hidden_cosine_distance"].values[...] = drift[:, None, :] ** 2 / 2
    ds["logit_kl"].values[...] = drift**2
    ds["logit_kl_token"].values[...] = drift[..., None] ** 2
    for name in ("logit_js",):
        ds[name].values[...] = np.minimum(drift**2 / 4, 0.6)
    for name in ("logit_rel_l2", "logit_max_abs", "delta_p_rms"):
        ds[name].values[...] = np.minimum(drift, 1)
    ds["top1_agreement"].values[...] = 1 - np.minimum(drift, 1)
    ds["nll_fold"].values[...] = ds["nll_full"].values + drift**2
    return ds


def make(drift: np.ndarray, *, tokens: int | None = None, chunk_size: int = 32, **more: Any) -> xr.Dataset:
    """Return a cell whose every distance is `drift` [document, step]."""
    documents, steps = drift.shape
    options = {k: more.pop(k) for k in ("model", "dtype", "layers", "seed") if k in more}
    ds = synthetic.cell(
        **{"layers": 2, "model": "tiny"} | options,  # type: ignore[arg-type]
        chunk_size=chunk_size, tokens=tokens or chunk_size * steps, documents=documents,
    )  # fmt: skip
    ds = set_drift(ds, np.asarray(drift, dtype=float))
    return remake(ds, **more)


def sizes(dtype: str) -> list[float]:
    """Sizes of noise that are put in on a rung."""
    return [10.0**-k for k in range(6, 0, -1) if 10.0**-k >= synthetic.ROUNDOFF[dtype] or dtype in ("fp32", "fp64")]


def response(size: float, dtype: str, power: float = 1.0) -> float:
    """Drift after noise of a size: in quadrature with a tenth of the floor, and bent where it is large."""
    linear = GAIN * size**power
    rounding = 0.1 * FLOOR * synthetic.ROUNDOFF[dtype]
    return float(np.hypot(linear, rounding) / (1 + linear / 4))


def controls(
    models: Sequence[str] = ("tiny",),
    dtypes: Sequence[str] = ("bf16", "fp32"),
    *,
    documents: int = 2,
    steps: int = 8,
    seed: int = 0,
    power: float = 1.0,
    shift_at: int = 4,
    shift_power: float = 0.0,
    floor_power: float = 1.0,
    quiet: float = 0.0,
    early: float = 0.0,
    kinds: Sequence[str] = ("quiet", "floor", "perturbed", "shifted"),
) -> list[xr.Dataset]:
    """Return the control cells of a sweep; each keyword breaks one of them."""
    rng = np.random.default_rng(seed)
    cells = []
    for model in models:
        for dtype in dtypes:
            u = synthetic.ROUNDOFF[dtype]
            known = {"model": model, "dtype": dtype}

            def noise(sigma: float = 0.15) -> np.ndarray:
                return np.exp(sigma * rng.standard_normal((documents, steps)))

            if "quiet" in kinds:
                drift = np.full((documents, steps), quiet)
                cells.append(make(drift, **known, protocol="full", control="quiet"))
            if "floor" in kinds:
                for protocol in ("full(attention=eager)", "full(batch=2)"):
                    drift = FLOOR * (u**floor_power if floor_power > 0.5 else 1e-3) * noise()
                    cells.append(make(drift, **known, protocol=protocol, control="floor"))
            if "perturbed" in kinds:
                wobble = noise(0.05)
                for size in sizes(dtype):
                    drift = response(size, dtype, power) * wobble * 0.9 ** np.maximum(np.arange(steps) - 3.0, 0)
                    drift[:, :3] = early
                    cells.append(
                        make(drift, **known, protocol=f"perturbed(append,step=2,size={size:g})",
                             reference="unperturbed", control="fires")
                    )  # fmt: skip
            if "shifted" in kinds:
                drift = FLOOR * u * noise()
                drift[:, shift_at:] = SHIFTED * u**shift_power * noise(0.05)[:, shift_at:]
                cells.append(make(drift, **known, protocol="shifted(append,step=4)", control="fires"))
    return cells


def gold(
    ds: xr.Dataset, structural: float, full: float, fold: float, seed: int = 0, scatter: float = 0.1
) -> xr.Dataset:
    """Turn a cell into one against float64: its error is a sum of vectors of these lengths, made and measured."""
    rng = np.random.default_rng(seed)
    shape = ds["hidden_rel_l2"].shape
    lengths = np.array([structural, full, fold])[:, None, None, None] * np.exp(
        scatter * rng.standard_normal((3, *shape))
    )
    vectors = rng.standard_normal((3, *shape, 64))
    vectors *= (lengths / np.linalg.norm(vectors, axis=-1))[..., None]
    total = vectors.sum(axis=0)
    size = np.linalg.norm(total, axis=-1)
    with np.errstate(invalid="ignore"):
        shares = (vectors * total).sum(axis=-1) / size**2
    more: dict[str, Any] = {
        f"hidden_rel_l2_{p}": np.linalg.norm(v, axis=-1) for p, v in zip(PARTS, vectors, strict=True)
    }
    more |= {f"hidden_share_{p}": s for p, s in zip(PARTS, shares, strict=True)}
    return remake(ds, reference="gold", hidden_rel_l2=size, **more)


def disturbed(
    law: Callable[[np.ndarray], np.ndarray],
    *,
    step: int = 4,
    steps: int = 32,
    documents: int = 4,
    noise: float = 0.05,
    seed: int = 0,
    size: float = 1e-3,
    **more: Any,
) -> xr.Dataset:
    """Return a cell whose gain k steps after the first affected one is ``law(k)``, times noise."""
    rng = np.random.default_rng([seed, step])
    k = np.arange(steps - step - 1, dtype=float)
    drift = np.zeros((documents, steps))
    drift[:, step + 1 :] = GAIN * size * law(k) * np.exp(noise * rng.standard_normal((documents, len(k))))
    label = f"perturbed(append,step={step},size={size:g})"
    return make(drift, protocol=label, reference="unperturbed", **more)


def whole(folder: Path, *, broken: bool = False, models: Sequence[str] = ("alpha", "beta"), **options: Any) -> Path:
    """Write a small sweep that has everything: folds, gold, disturbed folds, generated tokens and controls."""
    dtypes = ["bf16", "fp32"]
    cells = synthetic.cells(list(models), dtypes, ["append", "restart"], [16, 32], layers=2, tokens=256, documents=2)
    for model in models:
        for dtype in dtypes:
            u = synthetic.ROUNDOFF[dtype]
            known = {"model": model, "dtype": dtype}
            for protocol, structural in (("append", 1e-12), ("restart", 0.6)):
                ds = synthetic.cell(**known, protocol=protocol, chunk_size=32, tokens=256, layers=2)  # type: ignore[arg-type]
                cells.append(gold(ds, structural, 4 * u, 2 * u))
            for step in (2, 5):
                cells.append(
                    disturbed(lambda k: 0.9**k, step=step, steps=16, documents=2, size=0.05, chunk_size=16, **known)
                )
            previous = remake(synthetic.cell(**known, chunk_size=32, tokens=256, layers=2), reference="previous")  # type: ignore[arg-type]
            for name in previous.data_vars:
                if previous[name].dtype.kind == "f" and "step" in previous[name].dims:
                    if str(name).startswith(("logit", "top1", "delta", "nll")):
                        previous[name].values[...] = np.nan
                    else:
                        previous[name][{"step": 0}] = np.nan
            cells.append(previous)
            spoken = synthetic.cell(**known, chunk_size=32, tokens=256, layers=2)  # type: ignore[arg-type]
            shape = spoken["logit_kl"].shape
            cells.append(remake(spoken, protocol="decode(append,tokens=8)", token_agreement=np.full(shape, 0.9)))
    cells += controls(models, dtypes, quiet=1e-3 if broken else 0.0, **options)
    folder.mkdir(parents=True, exist_ok=True)
    for place, ds in enumerate(cells):
        dataset.write(ds, folder / f"cell-{place:03d}_{ds.attrs['config_sha256'][:16]}.nc")
    return folder

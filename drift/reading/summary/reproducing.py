"""The commands that make a sweep again."""

from __future__ import annotations

import copy
import json
import shlex
from typing import Any

import yaml

from drift.dataset.attributes import attribute
from drift.dataset.sweep import Sweep
from drift.shown import printable

__all__ = ["reproduce"]


def reproduce(sweep: Sweep) -> str:
    """Write the commands that give these cells again, from what the cells say about themselves."""
    if not len(sweep):
        return ""
    commits = sorted({str(ds.attrs["git_commit"]) for ds in sweep})
    dirty = any(ds.attrs["git_dirty"] for ds in sweep)
    lines = []
    if len(commits) == 1 and len(commits[0]) >= 7 and set(commits[0]) <= set("0123456789abcdef"):
        lines.append(f"git checkout {commits[0]}" + ("   # with uncommitted changes" if dirty else ""))
    elif len(commits) > 1:
        lines.append(f"# cells of {len(commits)} commits: {printable(', '.join(c[:10] for c in commits))}")
    # how 16-bit products were accumulated depends on the machine unless it is said
    halves = {
        attribute(ds.attrs, "config_json").get("half_matmul") for ds in sweep if ds["unit_roundoff"].item() > 1e-4
    }
    half_matmul = next(iter(halves)) if len(halves) == 1 else None
    out = shlex.quote(sweep.folder.name if sweep.folder else "SWEEP")
    if isinstance(sweep.plan.get("config"), dict):
        config = copy.deepcopy(sweep.plan["config"])
        for grid in config.get("grids", ()):
            if half_matmul and grid.get("half_matmul") == "auto":
                grid["half_matmul"] = half_matmul
        written = yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
        end = "END"
        while end in written.splitlines():  # a text in it would end it, and what follows would be commands
            end += "_"
        lines += [f"cat > sweep.yaml <<'{end}'", written.rstrip(), end, f"python -m drift.sweep sweep.yaml --out {out}"]
        return "\n".join([*lines, f"python -m drift.report {out}"])
    groups: dict[str, dict[str, list[Any]]] = {}
    for ds in sweep:
        config = attribute(ds.attrs, "config_json")
        corpus = config.get("corpus")
        attrs = ds.attrs
        fixed = {
            "documents": ds.sizes["document"],
            "tokens": int(ds["token_stop"].values[-1]),
            "corpus": corpus if isinstance(corpus, str) else None,
            "attn_implementation": ds["attn_implementation"].item(),
            "device": ds["device"].item(),
            "reference": ds["reference"].item() if ds["reference"].item() != "full" else None,
            "seed": int(attrs["seed"]),
            "logit_stride": int(attrs["logit_stride"]) if int(attrs["logit_stride"]) != 1 else None,
        }
        key = json.dumps({k: v for k, v in fixed.items() if v is not None})
        axes = groups.setdefault(key, {"model": [], "dtype": [], "protocol": [], "chunk_size": []})
        for name, values in axes.items():
            if ds[name].item() not in values:
                values.append(ds[name].item())
    for key, axes in groups.items():
        settings = {**{n: sorted(v) if n == "chunk_size" else v for n, v in axes.items()}, **json.loads(key)}
        if half_matmul:
            settings["half_matmul"] = half_matmul
        words = [
            f"--set {shlex.quote(name + '=' + ','.join(map(str, v if isinstance(v, list) else [v])))}"
            for name, v in settings.items()
        ]
        lines.append("python -m drift.sweep " + " ".join(words) + f" --out {out}")
    lines.append(f"python -m drift.report {out}")
    return "\n".join(lines)

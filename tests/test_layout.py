"""Every figure of the facade fits on a screen, and nothing that is written in it covers anything else."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import layout
import numpy as np
import pytest
import synthetic
import synthetic_controls as made
import xarray as xr
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from task_tools import task_cell

from drift.dataset.rungs import RUNGS
from drift.dataset.sweep import Sweep
from drift.reading import controls, figures, gain, ladder, why
from drift.reading.claims import auditing, model, published
from drift.reading.figures import style

MODELS = ("smollm2-135m-instruct", "gemma-3-270m", "qwen2.5-coder-0.5b-instruct")
PROTOCOLS = ("append", "reprime", "restart", "isolated", "quantized(append,format=int8,axis=token)")
NOISES = (0.01, 0.1, 1, 10, 100, 1000, 10000)


def folds(
    models: tuple[str, ...], dtypes: tuple[str, ...], protocols: tuple[str, ...], chunks: tuple[int, ...], steps: int
) -> list[xr.Dataset]:
    return [
        synthetic.cell(model=m, dtype=d, protocol=p, chunk_size=c, tokens=steps * min(chunks), documents=4, layers=4,
                       floor=lambda k, d=d: np.full(k.shape, synthetic.APPEND[d]))
        for m, d, p, c in itertools.product(models, dtypes, protocols, chunks)
    ]  # fmt: skip


SWEEPS: dict[str, Callable[[], list[xr.Dataset]]] = {
    "one cell": lambda: folds(("gemma-3-270m",), ("bf16",), ("append",), (32,), 32),
    "one chunk size": lambda: folds(MODELS, ("bf16", "fp32"), PROTOCOLS[:4], (32,), 32),
    "many": lambda: folds(MODELS, ("bf16", "fp32"), PROTOCOLS, (16, 64), 512),
    "a ladder": lambda: folds(MODELS[:2], ("bf16", "fp16", "fp32", "fp64"), PROTOCOLS[:2], (16, 32), 32),
}


@cache
def sweep(name: str) -> Sweep:
    return Sweep(SWEEPS[name]())


@cache
def audit(name: str) -> model.Audit:
    return auditing.audit(sweep(name), others=())


def explained(name: str) -> why.Explained:
    return why.explain(sweep(name))


def noises(name: str) -> Sweep:
    many = list(sweep(name).values("model"))
    answers = {k: 0.0 if k < 1 else min(3 * np.hypot(k, 1), 300.0) for k in NOISES}
    return Sweep(
        [
            synthetic.cell(model=m, dtype=d, protocol=f"full(noise={k})", chunk_size=32, tokens=512, layers=2,
                           level=lambda s, u=synthetic.ROUNDOFF[d], y=y: np.full(s.shape, u * y))
            for m in many for d in sweep(name).values("dtype") for k, y in answers.items()
        ]
    )  # fmt: skip


def gold(name: str) -> Sweep:
    return Sweep([made.gold(ds, 1e-3, 4e-3, 2e-3) for ds in sweep(name)])


def planted(name: str) -> controls.Checkup:
    return controls.evaluate(
        Sweep(list(sweep(name)), controls=made.controls(sweep(name).values("model"), sweep(name).values("dtype")))
    )


def gains(name: str) -> list[gain.Gain]:
    cells = [
        made.disturbed(lambda k: 0.9**k, step=step, steps=16, model=m, dtype=d)
        for m in sweep(name).values("model") for d in sweep(name).values("dtype") for step in (2, 5)
    ]  # fmt: skip
    return gain.gains(Sweep(cells))


def spoiled(name: str) -> Sweep:
    cells = [ds.copy(deep=True) for ds in sweep(name)]
    for ds in cells:
        ds["nonfinite_count"].values[:, 1, 2] = 3
    return Sweep(cells)


@cache
def asked(name: str) -> list[xr.Dataset]:
    rng = np.random.default_rng(7)
    shape, kinds = (8, 2), ("needle", "hops(facts=2)")
    return [
        task_cell(rng.integers(0, 2, shape), rng.integers(0, 2, shape), change=-0.3 * rng.random(shape),
                  kl=rng.random(shape), model=m, protocol=p, task=t, tokens=n)
        for m in sweep(name).values("model") for p in (*PROTOCOLS[:4], "full(noise=1,seed=1)") for t in kinds
        for n in (1024, 2048)
    ]  # fmt: skip


FIGURES: dict[str, Callable[[str], Figure | None]] = {
    "attribution": lambda n: figures.attribution(ladder.attributions(gold(n))),
    "depth_growth": lambda n: figures.depth_growth(sweep(n)),
    "drift_and_floor": lambda n: figures.drift_and_floor(sweep(n)),
    "drift_per_step": lambda n: figures.drift_per_step(sweep(n)),
    "drift_per_step token": lambda n: figures.drift_per_step(sweep(n), x="token"),
    "equivalence C1": lambda n: figures.equivalence(audit(n), "C1"),
    "equivalence C2": lambda n: figures.equivalence(audit(n), "C2"),
    "equivalence C3": lambda n: figures.equivalence(audit(n), "C3"),
    "equivalence C4": lambda n: figures.equivalence(audit(n), "C4"),
    "gains": lambda n: figures.gains(gains(n)),
    "heat_map": lambda n: figures.heat_map(sweep(n)),
    "keys_values": lambda n: figures.keys_values(sweep(n)),
    "level_vs_chunk_size": lambda n: figures.level_vs_chunk_size(sweep(n)),
    "level_vs_roundoff": lambda n: figures.level_vs_roundoff(sweep(n)),
    "levels": lambda n: figures.levels(ladder.ladders(sweep(n))),
    "logits_per_step": lambda n: figures.logits_per_step(sweep(n)),
    "nonfinite": lambda n: figures.nonfinite(spoiled(n)),
    "plateau_fit": lambda n: figures.plateau_fit(sweep(n)),
    "readings": lambda n: figures.readings(sweep(n)),
    "response": lambda n: figures.response(planted(n)),
    "response_to_noise": lambda n: figures.response_to_noise(noises(n)),
    "growth_with_position": lambda n: figures.growth_with_position(explained(n)),
    "inherited_per_step": lambda n: figures.inherited_per_step(explained(n)),
    "inherited_through_depth": lambda n: figures.inherited_through_depth(explained(n)),
    "costs_of_steps": lambda n: figures.costs_of_steps(asked(n)),
    "failure_against_drift": lambda n: figures.failure_against_drift(asked(n)),
    "found_by_depth": lambda n: figures.found_by_depth(asked(n)),
    "found_by_distance": lambda n: figures.found_by_distance(asked(n)),
    "likelihood_by_task": lambda n: figures.likelihood_by_task(asked(n)),
    "worst_tokens": lambda n: figures.worst_tokens(sweep(n)),
}


def test_every_figure_of_the_facade_is_laid_out_here() -> None:
    drawn = {name.split()[0] for name in FIGURES}
    assert set(figures.__all__) - {"choose", "described", "groups", "png", "show"} == drawn


#: What has a row, a line or a panel for each precision; to the others a ladder is as good as two of them.
OF_PRECISIONS = (
    "attribution", "drift_and_floor", "drift_per_step", "equivalence C1", "equivalence C3", "level_vs_chunk_size",
    "level_vs_roundoff", "levels", "logits_per_step", "response", "response_to_noise",
)  # fmt: skip
#: What looks the same with one chunk size as with one cell, or as with many.
OF_ANY_SIZE = (
    "drift_per_step token", "gains", "growth_with_position", "heat_map", "inherited_per_step",
    "inherited_through_depth", "nonfinite", "response", "response_to_noise", "worst_tokens", "costs_of_steps",
    "failure_against_drift", "found_by_depth", "found_by_distance", "likelihood_by_task",
)  # fmt: skip
PAIRS = [
    (figure, name)
    for figure in FIGURES
    for name in SWEEPS
    if (name != "a ladder" or figure in OF_PRECISIONS) and (name != "one chunk size" or figure not in OF_ANY_SIZE)
]


@pytest.mark.parametrize(("figure", "name"), PAIRS)
def test_a_figure_fits_on_a_screen_and_nothing_covers_anything(figure: str, name: str) -> None:
    made_of = FIGURES[figure](name)
    if made_of is not None:
        assert layout.wrong(made_of, style.WIDEST, style.HIGHEST) == []
    else:  # nothing to draw: one precision has no ladder, one chunk size no change with it, one model no pair
        assert figure in ("levels", "equivalence C2", "equivalence C3", "equivalence C4")
        assert name in ("one cell", "one chunk size")


def test_faults_of_a_layout_are_seen() -> None:
    figure = Figure(figsize=(4, 3))
    ax = figure.subplots()
    ax.set_xticks([0.50, 0.52], ["a long name", "another one"])
    ax.set_xlim(0, 1)
    ax.text(1.3, 0.5, "far out", transform=ax.transAxes)
    figure.suptitle("a title")
    ax.plot([0, 1], [0, 1], label="a line")
    figure.legend(loc="upper center")
    figure.legend(loc="center")
    found = " ".join(layout.wrong(figure, 380, 280))
    assert "400 x 300 pixels" in found
    assert "x tick 'a long name' covers panel 0: x tick 'another one'" in found
    assert "'far out' is outside" in found
    assert "title covers legend 0" in found
    assert "legend 1 covers panel 0" in found


# ---------------------------------------------------------------------------------------------- colours
#: What people see who lack one kind of cone (Machado, Oliveira, Fernandes 2009, severity 1), on linear RGB.
SIGHT = {
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]  # sRGB, linear, D65


def linear(colour: str) -> np.ndarray:
    c = np.array(to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB."""
    share = np.array(TO_XYZ) @ rgb / np.array([0.9505, 1.0, 1.089])
    f = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", [None, *SIGHT])
def test_precisions_can_be_told_apart_by_everybody(sight: str | None) -> None:
    """Ten steps of L* between any two, as printed in grey; twenty of L*a*b* where one kind of cone is missing."""
    seen = {}
    for name, colour in style.precision_colours(list(RUNGS)).items():
        rgb = np.clip(np.array(SIGHT[sight]) @ linear(colour), 0, 1) if sight else linear(colour)
        seen[name] = lab(rgb) if sight else lab(rgb)[:1]
    gaps = {(a, b): float(np.linalg.norm(seen[a] - seen[b])) for a, b in itertools.combinations(seen, 2)}
    assert min(gaps.values()) > (20 if sight else 10), gaps


def test_a_precision_has_one_colour_and_one_marker_whatever_stands_beside_it() -> None:
    every = list(RUNGS)
    for count in (1, 2, 3):
        for some in itertools.combinations(every, count):
            assert style.precision_colours(some).items() <= style.precision_colours(every).items()
            assert style.precision_markers(some).items() <= style.precision_markers(every).items()
    assert len(set(style.precision_colours(every).values())) == len(set(style.precision_markers(every).values())) == 5


# ---------------------------------------------------------------------------------------------- legends and words
def entries(figure: Figure | None) -> set[str]:
    assert figure is not None
    return {text.get_text() for legend in figure.legends for text in legend.get_texts()}


def test_legends_list_what_is_drawn() -> None:
    known = {"model": "tiny", "layers": 2, "tokens": 512, "chunk_size": 32}
    cells = [
        synthetic.cell(**known, dtype="bf16"),  # type: ignore[arg-type]
        synthetic.cell(**known, dtype="fp64", level=lambda k: 0 * k),  # type: ignore[arg-type]
        synthetic.cell(**known, dtype="bf16", protocol="restart", level=lambda k: 0 * k),  # type: ignore[arg-type]
    ]
    both = Sweep(cells)
    for draw in (figures.depth_growth, figures.level_vs_chunk_size, figures.drift_per_step):
        assert "bf16" in entries(draw(both))
        assert "fp64" not in entries(draw(both))
    for draw in (figures.depth_growth, figures.level_vs_chunk_size):
        assert "append" in entries(draw(both))
        assert "restart" not in entries(draw(both))
    found = controls.evaluate(Sweep(list(both), controls=made.controls(dtypes=["fp32"], kinds=("perturbed",))))
    assert "proportional" in entries(figures.response(found))
    assert "left out of the slope" not in entries(figures.response(found)), "every size is used"
    assert "left out of the slope" in entries(figures.response(planted("one cell")))
    assert "floor" not in entries(figures.response(found)), "no floor was measured"


def test_one_chunk_size_makes_no_axis_with_one_point() -> None:
    figure = figures.level_vs_chunk_size(
        Sweep([synthetic.cell(layers=2, tokens=512, dtype=d) for d in ("bf16", "fp32")])
    )
    (ax,) = figure.axes
    assert not ax.get_xticks().size
    assert "one size was run: 64" in ax.get_xlabel()
    assert len(ax.containers) == 2
    title = " ".join(figure.get_suptitle().split())
    assert title.startswith("Level of drift at chunk size 64: ")
    assert title.endswith(" under append")
    mixed = [synthetic.cell(layers=2, tokens=512, chunk_size=c) for c in (32, 64)]
    mixed.append(synthetic.cell(model="gemma-3-270m", layers=2, tokens=512, chunk_size=32))
    panels = {ax.get_title().split("\n")[0]: ax for ax in figures.level_vs_chunk_size(Sweep(mixed)).axes}
    assert "one size was run: 32" in panels["gemma-3-270m"].get_xlabel()
    assert "one size" not in panels["smollm2-135m-instruct"].get_xlabel()
    assert all(len(ax.get_xticks()) == 2 for ax in panels.values())
    assert "A point without a line was run at one chunk size." in " ".join(
        figures.level_vs_chunk_size(Sweep(mixed)).get_supxlabel().split()
    )


@pytest.mark.parametrize(("factor", "words"), [(1.004, "0.4 %"), (1.04, "4 %"), (1.4, "1.4-fold"), (1.0, "0 %")])
def test_small_changes_are_percentages(factor: float, words: str) -> None:
    cells = [
        synthetic.cell(layers=2, tokens=512, chunk_size=c, noise=0.0, level=lambda k, y=y: np.full(k.shape, 0.01 * y))
        for c, y in ((32, 1.0), (64, factor))
    ]
    title = " ".join(figures.level_vs_chunk_size(Sweep(cells)).get_suptitle().split())
    assert title == f"From chunk size 32 to 64 the level varies at most {words} under append"


def test_models_differ_only_where_two_are_decided_in_two_ways() -> None:
    def title(**power: tuple[float, float]) -> str:
        rng = np.random.default_rng(0)
        cells = [
            made.make(
                1e-2 * synthetic.ROUNDOFF[d] ** p * np.exp(noise * rng.standard_normal((4, 32))), dtype=d, model=m
            )
            for m, (p, noise) in power.items() for d in ("bf16", "fp32")
        ]  # fmt: skip
        figure = figures.levels(ladder.ladders(Sweep(cells)))
        assert figure is not None
        return " ".join(figure.get_suptitle().split()).split("? ")[1]

    assert title(a=(1.0, 0.01), b=(1.0, 0.01)) == "Rounding: append"
    assert title(a=(1.0, 0.01), b=(1.4, 0.01)) == "Rounding: append (1 of 2 models undetermined)"
    assert title(a=(1.0, 0.01), b=(0.0, 0.01)) == "Models differ: append"
    assert title(a=(1.4, 0.01), b=(1.4, 0.01)) == "Undetermined: append"


# ---------------------------------------------------------------------------------------------- beyond a screen
def test_ladders_and_gains_beyond_a_screen_are_counted() -> None:
    cells = [
        made.make(np.full((2, 16), 3 * synthetic.ROUNDOFF[d]), dtype=d, protocol=f"streaming(sinks={k})")
        for k in range(style.MOST_PANELS + 2) for d in ("bf16", "fp32")
    ]  # fmt: skip
    figure = figures.levels(ladder.ladders(Sweep(cells)))
    assert figure is not None
    assert layout.wrong(figure, style.WIDEST, style.HIGHEST) == []
    assert f"The first {style.MOST_PANELS} of {style.MOST_PANELS + 2} readings are drawn" in " ".join(
        figure.get_supxlabel().split()
    )
    planted = [made.disturbed(lambda k: 0.9**k, model=f"model-{k}", steps=16) for k in range(style.MOST_PANELS + 1)]
    figure = figures.gains(gain.gains(Sweep(planted)))
    assert figure is not None
    assert layout.wrong(figure, style.WIDEST, style.HIGHEST) == []
    assert f"The first {style.MOST_PANELS} of {style.MOST_PANELS + 1} folds and models are drawn" in " ".join(
        figure.get_supxlabel().split()
    )


def test_of_more_rows_than_a_screen_holds_those_that_decide_are_drawn() -> None:
    def row(name: str, status: model.Status) -> model.Finding:
        return model.Finding(
            "C1", "plateau", "append", "hidden_rel_l2", name, status, "growth", 0.01, (-0.02, 0.04), (-0.048, 0.05),
            0.5, 0.5, "",
        )  # fmt: skip

    rows = [
        row(f"model-{k:02d} bf16, chunk 8", model.Status.REFUTED if k % 7 == 3 else model.Status.UNDETERMINED)
        for k in range(90)
    ]
    summary = model.ClaimSummary(published.CLAIMS[0], "append", model.Status.REFUTED, "", tuple(rows))
    figure = figures.equivalence(model.Audit((summary,), "hidden_rel_l2", "last", model.Setting(), tuple(rows)), "C1")
    assert figure is not None
    assert layout.wrong(figure, style.WIDEST, style.HIGHEST) == []
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    words = " ".join(figure.get_supxlabel().split())
    assert f"{len(names)} of 90 rows are drawn, first those that decide; the table lists all." in words
    assert "All rows: chunk 8." in words
    assert {f"model-{k:02d} bf16" for k in range(3, 90, 7)} < set(names)
    assert names == sorted(names)


def test_the_first_figure_can_be_read_on_a_telephone() -> None:
    """Scaled to a page of 390 pixels, no letters are smaller than 6.5 pixels: x-heights of three and more."""
    figure = figures.drift_and_floor(sweep("one chunk size"))
    figure.draw_without_rendering()
    scale = 390 / (figure.dpi * figure.get_figwidth())
    sizes = {name: text.get_fontsize() / 72 * figure.dpi * scale for name, text in layout.drawn(figure)}
    assert min(sizes.values()) > 6.5, min(sizes.items(), key=lambda item: item[1])
    for legend in figure.legends:
        assert all(text.get_fontsize() / 72 * figure.dpi * scale > 6.5 for text in legend.get_texts())
    width = figure.dpi * figure.get_figwidth()
    panels = [ax.get_window_extent() for ax in figure.axes]
    assert max(box.x1 for box in panels) > 0.98 * width, "legends take width"

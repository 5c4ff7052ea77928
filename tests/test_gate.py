"""Every way to a verdict of a sweep, on a sound sweep and on one whose controls failed.

`ENTRIES` has all of them, and says where the words of a verdict stand; `SILENT` has what takes a sweep and judges
nothing. A function that takes a sweep and is in neither fails the test.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic
import synthetic_controls as made
from matplotlib.figure import Figure

import drift.reading
from drift import claims as claims_door
from drift import dataset
from drift import ladder as ladder_door
from drift import plateau as plateau_door
from drift.dataset import opening
from drift.dataset.sweep import Sweep
from drift.reading import claims, controls, figures, floor, gain, ladder, side_by_side, summary, why
from drift.reading.accessor import SweepAccessor
from drift.reading.claims import against, chunking, missing, models, precision, published, saturation
from drift.reading.claims.model import Setting, Status
from drift.reading.floor.model import Standing
from drift.reading.plateau import curves, terminal
from drift.reading.plateau.model import Verdict
from drift.reading.report import front
from drift.reading.report.answers import Answers, answers
from drift.reading.report.exhibits import Exhibit
from drift.reading.statistics import rate, slope

MEASURE, LAYER = "hidden_rel_l2", "last"
#: Words that only a verdict that was drawn has; "flat" and "both" have other uses, and count where a verdict stands.
DECIDED = {
    *(v.value for v in Verdict if v is not Verdict.UNDETERMINED),
    *(v.value for v in slope.Scaling if v is not slope.Scaling.UNDETERMINED),
    *(v.value for v in rate.Trend if v is not rate.Trend.UNDETERMINED),
    Status.SUPPORTED.value,
    Status.REFUTED.value,
    *(v.value for v in Standing if v in (Standing.AT_FLOOR, Standing.GROWING)),  # the others have other uses
    "at the floor: drift is rounding",
    "below its floor",
    "insensitive to precision",
    "partly sensitive to precision",
    "proportional to the unit roundoff",
}


def decided(words: Iterable[str]) -> set[str]:
    """Verdicts among some words, written as names, as sentences, or counted: ``2 flat, 1 growing``."""
    texts = [text.lower().replace("_", " ") for text in words]
    names = {name.replace("_", " ") for name in DECIDED}
    before = {name: r"(?:^|[:;(] |\d )" if name in ("flat", "both") else "(?<![a-z])" for name in names}
    after = "(?![a-z]| per doubling| means)"
    return {name for name in names for text in texts if re.search(before[name] + name + after, text)}


# ---------------------------------------------------------------------------------------------- the table
def texts(figure: Figure | None) -> list[str]:
    """Title of a figure less its question, and titles of its panels."""
    assert figure is not None
    whole = str(figure.get_suptitle())
    panels = [ax.get_title(loc=loc) for ax in figure.axes for loc in ("left", "center")]  # type: ignore[arg-type]
    return [whole.partition("?")[2] if "?" in whole else whole, *panels]


def said(door: Any, *arguments: str) -> Callable[[Sweep], str]:
    """What a command writes on stdout."""

    def of(sweep: Sweep) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            assert door.main([str(sweep.folder), *arguments]) == 0
        return out.getvalue()

    return of


def values(found: Any, *keys: str) -> Iterator[str]:
    """Values of some keys anywhere in what JSON holds."""
    if isinstance(found, dict):
        yield from (str(found[k]) for k in keys if isinstance(found.get(k), str))
        found = list(found.values())
    if isinstance(found, list):
        for one in found:
            yield from values(one, *keys)


def column(table: pd.DataFrame, *names: str) -> list[str]:
    return [str(v) for name in names for v in table[name]]


def in_json(door: Any, *keys: str) -> Callable[[Sweep], list[str]]:
    return lambda s: list(values(json.loads(said(door, "--json")(s)), *keys))


def in_csv(door: Any) -> Callable[[Sweep], list[str]]:
    return lambda s: column(pd.read_csv(io.StringIO(said(door, "--csv")(s))), "verdict")


def findings(audit: Any, *more: Any) -> Callable[[Sweep], list[str]]:
    return lambda s: [f.words for f in audit(s, MEASURE, LAYER, Setting(), *more)]


def audited(sweep: Sweep) -> Any:
    return claims.audit(sweep, others=())


def audit_words(sweep: Sweep) -> list[str]:
    found = audited(sweep)
    return [
        *(s.status.value for s in found.summaries),
        *(s.words for s in found.summaries if s.claim.audit),
        *(f.words for f in found.findings),
        *values(found.as_dict(), "verdict", "status", "kind"),
        claims.html(found),
        claims.markdown(found),
        *side_by_side.reproduced(found),
        *claims.changes(found),
    ]


def claims_lines(sweep: Sweep) -> list[str]:
    """Every line of the terminal's table, less the three that explain the words."""
    return said(claims_door, "--details")(sweep).split("\nSupported: every cell")[0].splitlines()


def ladder_lines(sweep: Sweep) -> list[str]:
    rows = said(ladder_door)(sweep).split("\nRounding: the")
    return [rows[0].partition("verdict")[2], rows[1].partition("\n\n")[2].replace("% structural", "")]


ENTRIES: dict[str, Callable[[Sweep], Iterable[str]]] = {
    "sweep.drift.plateau": lambda s: column(s.drift.plateau(), "verdict", "explanation"),
    **{
        f"python -m drift.plateau --of {of} --json": lambda s, of=of: values(  # type: ignore[misc]
            json.loads(said(plateau_door, "--of", of, "--json")(s)), "verdict", "explanation"
        )
        for of in ("excess", "accumulation", "floor")
    },
    "sweep.drift.rounding": lambda s: column(s.drift.rounding(), "verdict", "explanation"),
    "floor.judging.from_sweep": lambda s: [str(one) for _, one in floor.from_sweep(s)],
    "floor.comparing.both_verdicts": lambda s: [one.words for one in floor.both_verdicts(s)],
    "floor.comparing.contradictions": lambda s: [one.words for one in floor.contradictions(s)],
    "sweep.drift.ladder": lambda s: column(s.drift.ladder(), "verdict"),
    "python -m drift.plateau": lambda s: said(plateau_door)(s).split("\nPlateau: ")[0].splitlines()[1:],
    "python -m drift.plateau --json": in_json(plateau_door, "verdict", "explanation"),
    "python -m drift.plateau --csv": in_csv(plateau_door),
    "python -m drift.ladder": ladder_lines,
    "python -m drift.ladder --json": in_json(ladder_door, "verdict"),
    "python -m drift.ladder --csv": in_csv(ladder_door),
    "python -m drift.claims --details": claims_lines,
    "python -m drift.claims --json": in_json(claims_door, "verdict", "status", "kind", "words"),
    "python -m drift.claims --markdown": lambda s: [said(claims_door, "--markdown")(s)],
    "claims.auditing.audit": audit_words,
    "claims.saturation.verdicts": lambda s: [
        text for *_, p in saturation.verdicts(s, MEASURE, LAYER, Setting()) for text in (p.verdict.value, str(p))
    ],
    "claims.saturation.c1_plateau": findings(saturation.c1_plateau),
    "claims.against.c1_excess": findings(against.c1_excess),
    "claims.against.c1_accumulation": findings(against.c1_accumulation),
    "claims.precision.c2": findings(precision.c2),
    "claims.models.c4_plateau": findings(models.c4_plateau),
    "ladder.judging.ladders": lambda s: [
        x.verdict.value for one in ladder.ladders(s) for x in (one.slope, *(p.slope for p in one.pairs))
    ],
    "ladder.wording.by_measure": lambda s: ladder.by_measure(s).iloc[:, 3:].to_numpy().ravel().tolist(),
    "ladder.attribution.attributions": lambda s: [
        text.rpartition("largest share is")[2] for text in ladder.attribution_sentences(ladder.attributions(s))
    ],
    "gain.gains": lambda s: [*(g.rate.verdict.value for g in gain.gains(s)), *gain.gain_sentences(gain.gains(s))],
    "side_by_side.side_by_side": lambda s: column(side_by_side.side_by_side(s), "verdict"),
    "summary.scaling.scaling_table": lambda s: column(summary.scaling_table(s), "the ladder says", "against the floor"),
    "summary.levels.table": lambda s: column(summary.table(s), "verdict"),
    "summary.describing.headline": lambda s: summary.headline(dataset.folds(s)).values(),
    "summary.describing.curve_sentences": lambda s: summary.curve_sentences(dataset.folds(s)),
    "report.front.write_front": lambda s: re.findall(r'<ul class="lead">(.*?)</ul>', index(s), flags=re.DOTALL),
    "report.answers.answers": lambda s: first_page(answers([Exhibit(s)])),
    "why.computing.explain": lambda s: why_sentences(why.explain(s)),
    "figures.floor.drift_and_floor": lambda s: texts(figures.drift_and_floor(s)),
    "figures.chain.drift_per_step": lambda s: texts(figures.drift_per_step(dataset.folds(s))),
    "figures.level.level_vs_roundoff": lambda s: texts(figures.level_vs_roundoff(dataset.folds(s))),
    "figures.plateau.plateau_fit": lambda s: texts(figures.plateau_fit(dataset.folds(s))),
}


def why_sentences(found: why.Explained) -> list[str]:
    sentences = [
        why.answer(found),
        *why.explanation(found),
        *why.position_sentences(found),
        *why.depth_sentences(found),
    ]
    return [text.replace("rounding floor", "floor") for text in sentences]  # the name of a measure, and no verdict


def first_page(said: Answers) -> list[str]:
    return [*said.sentences, *(field.word for row in said.rows for field in row.fields)]


def index(sweep: Sweep) -> str:
    assert sweep.folder is not None
    front.write_front([Exhibit(sweep)], (), sweep.folder, (), "a sweep", "", "figures")
    return (sweep.folder / "index.html").read_text(encoding="utf-8")


#: Functions that take a sweep and draw no conclusion: they choose, describe, or speak of the instrument.
SILENT = """
amplitudes.holding figures.style.sizes_words figures.style.smallest_chunks
cells.deepest cells.grouped_cells cells.judged_chains cells.longest cells.protocol_lines cells.protocol_summaries
cells.select report.practice.practice report.exhibits.deepest_exhibit
report.exhibits.deepest_with_floor claims.chunking.c3 claims.models.c4_level
claims.against.chains_with_floor claims.saturation.c1_rise claims.missing.undecided claims.page.commands
controls.evaluating.evaluate
controls.floor.floor_cells controls.floor.floors controls.floor.in_floors controls.gating.gate
figures.logits.logits_per_step
floor.responding.noise_responses why.responding.responses figures.noise.response_to_noise
figures.chain.nonfinite figures.depth.depth_growth figures.depth.heat_map figures.depth.keys_values
figures.depth.worst_tokens figures.level.level_vs_chunk_size figures.side_by_side.readings figures.style.choose
figures.style.dtypes_of figures.style.groups figures.style.model_title figures.style.need_cells gain.by_layer
excess.accumulations excess.without_one_step plateau.curves.from_sweep plateau.curves.left_out
side_by_side.chains summary.describing.chunk_sentences
summary.describing.depth_answer claims.showing.by_chunk
summary.describing.depth_sentences summary.explaining.words summary.tables.depth_table
summary.describing.logit_sentences summary.describing.token_sentences
summary.inventory.contents summary.inventory.failures summary.inventory.nonfinite summary.inventory.problems
summary.inventory.provenance summary.levels.curves summary.levels.depth summary.levels.tokens
summary.reproducing.reproduce tasks.select_tasks
"""


# ---------------------------------------------------------------------------------------------- the tests
def write(folder: Path, quiet: float) -> Sweep:
    model, dtypes = ["alpha", "beta"], ["bf16", "fp32"]
    readings = ["append", "restart", "one_step(append)"]
    # A floor of bf16 at both precisions: what the ladder and the floor say of fp32 contradicts.
    cells = synthetic.cells(
        model, dtypes, readings, [16, 32], layers=2, tokens=1024, documents=4, floor=lambda step: 1.4e-2 + 0 * step
    )
    for m in model:
        for dtype in dtypes:
            one = synthetic.cell(model=m, dtype=dtype, chunk_size=32, tokens=1024, layers=2, documents=4)
            u = synthetic.ROUNDOFF[dtype]
            cells += [made.gold(one, 1e-12, 4 * u, 2 * u), made.disturbed(lambda k: 0.8**k, model=m, dtype=dtype)]
    cells += made.controls(model, dtypes, quiet=quiet, kinds=("quiet",))
    folder.mkdir()
    for place, ds in enumerate(cells):
        dataset.write(ds, folder / f"{place}.nc")
    return dataset.open_sweep(folder)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return write(tmp_path_factory.mktemp("sound") / "sweep", 0.0)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return write(tmp_path_factory.mktemp("spoilt") / "sweep", 1e-6)


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch, sound: Sweep, spoilt: Sweep) -> None:
    """Commands are given sweeps that are open already: to read the files again each time takes a minute."""
    folders = {str(s.folder): s for s in (sound, spoilt)}
    for module in (opening, terminal):
        monkeypatch.setattr(module, "open_sweep", lambda path: folders[str(path)])


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_way_leads_to_a_verdict_where_a_control_failed(entry: str, sound: Sweep, spoilt: Sweep) -> None:
    assert decided(ENTRIES[entry](sound)), "of a sound sweep this entry says nothing that a gate could withhold"
    assert decided(ENTRIES[entry](spoilt)) == set()


def test_a_selection_goes_through_the_same_gate(spoilt: Sweep) -> None:
    derived = {
        "sel": spoilt.sel(model="alpha"),
        "folds": dataset.folds(spoilt),
        "longest": drift.reading.cells.longest(dataset.folds(spoilt)),
        "chains": side_by_side.chains(spoilt),
        "groups": next(iter(figures.groups(dataset.folds(spoilt), "x")))[1],
    }
    assert {name for name, part in derived.items() if controls.gate(part).is_open} == set()


def test_a_withheld_curve_says_which_control_failed_and_keeps_its_estimates(sound: Sweep, spoilt: Sweep) -> None:
    before, after = sound.drift.plateau(), spoilt.drift.plateau()
    assert set(after["verdict"]) == {"undetermined"}
    assert set(after["reason"]) == {"controls of the instrument failed"}
    assert after["explanation"].str.contains("quiet, alpha bf16.* full attention run twice differs").all()
    for name in ("growth_per_doubling", "level", "p_equivalence"):
        np.testing.assert_array_equal(before[name].to_numpy(dtype=float), after[name].to_numpy(dtype=float))
    assert after[["documents_needed", "steps_needed"]].isna().all(axis=None)
    text = said(plateau_door)(spoilt)
    assert "No verdict is drawn, because controls of the instrument failed: quiet, alpha bf16" in text


def test_one_cell_and_a_file_have_no_controls(spoilt: Sweep, tmp_path: Path) -> None:
    ds = spoilt.sel(model="alpha", dtype="bf16", protocol="append", chunk_size=16, reference="full").only()
    assert ds.drift.plateau().verdict.is_plateau
    assert "no controls" in type(ds.drift).plateau.__doc__  # and that is said
    rows = [f"{d},{k},{v}" for d, row in enumerate(dataset.curve(ds, MEASURE)) for k, v in enumerate(row)]
    (tmp_path / "mine.csv").write_text("\n".join(["document,step,value", *rows]))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert plateau_door.main([str(tmp_path / "mine.csv"), "--json"]) == 0
    assert decided(values(json.loads(out.getvalue()), "verdict"))


def test_claims_that_are_withheld_would_be_supported_from_no_margin(spoilt: Sweep) -> None:
    found = missing.undecided(audited(spoilt), spoilt)
    assert set(found["supported from a margin of"]) == {"none, as controls failed"}


def takers() -> Iterator[str]:
    """Public functions of the reading wing that take a sweep, or the exhibits of a report."""
    for module in pkgutil.walk_packages(drift.reading.__path__, "drift.reading."):
        here = importlib.import_module(module.name)
        for name, function in vars(here).items():
            mine = inspect.isfunction(function) and function.__module__ == module.name and name[0] != "_"
            given = [str(p.annotation) for p in inspect.signature(function).parameters.values()] if mine else []
            if any(kind in text for text in given for kind in ("Sweep", "Exhibit")):
                yield f"{module.name.removeprefix('drift.reading.')}.{name}"


def test_every_way_is_in_the_table() -> None:
    there = {*takers(), *(f"sweep.drift.{name}" for name in vars(SweepAccessor) if name[0] != "_")}
    doors = {name for name in ENTRIES if name.startswith("python")}
    assert there - ENTRIES.keys() - set(SILENT.split()) == set(), "new: does it go through the gate?"
    assert (ENTRIES.keys() - doors | set(SILENT.split())) - there == set(), "gone"
    forms = {
        f"python -m drift.{n} --{f}" for n, fs in (("plateau", "json csv"), ("ladder", "json csv")) for f in fs.split()
    }
    assert forms <= doors


def test_a_function_that_judges_curves_has_to_be_given_a_gate() -> None:
    parameter = inspect.signature(curves.judge).parameters["gate"]
    assert parameter.default is inspect.Parameter.empty
    assert {c.audit for c in published.CLAIMS if c.audit} == {
        saturation.c1_plateau, saturation.c1_rise, against.c1_excess, against.c1_accumulation, precision.c2,
        chunking.c3, models.c4_level, models.c4_plateau,
    }  # fmt: skip

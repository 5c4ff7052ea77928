"""One question has one answer: the pages of one sweep, compared cell by cell."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import in_process
import numpy as np
import pandas as pd
import pytest
import synthetic
import xarray as xr
from bs4 import BeautifulSoup

import drift
from drift import dataset
from drift.dataset.sweep import Sweep
from drift.reading import claims, floor, ladder, side_by_side, summary
from drift.reading.cells import DEEP_STEPS, judged_chains
from drift.reading.report import rendering
from drift.reading.statistics.slope import Scaling
from drift.reading.wording.verdicts import STORAGE_WORDS

MODELS = ("alpha", "beta", "gamma")
#: Reading, how its drift goes with the unit roundoff, and with the step.
LAWS = (("append", 0.9, 0.0), ("reprime", 0.0, 0.25), ("quantized(format=int4)", 0.03, 0.0))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PAGES = ("claims", "plateau", "precision", "readings")


def cell(model: str, dtype: str, protocol: str, chunk_size: int, tokens: int = 1024) -> xr.Dataset:
    power, growth = next((p, g) for name, p, g in LAWS if name == protocol)
    u = synthetic.ROUNDOFF[dtype]
    ds = synthetic.cell(
        model=model, dtype=dtype, protocol=protocol, chunk_size=chunk_size, tokens=tokens, documents=4, layers=2,
        level=lambda step: 0.3 * u**power * (step + 1) ** growth, noise=0.05, floor=lambda step: 0.3 * u + 0 * step,
        seed=len(model + protocol),
    )  # fmt: skip
    rng = np.random.default_rng([len(model), chunk_size, len(protocol)])
    ds["hidden_rel_l2"].values[...] *= np.exp(0.02 * rng.standard_normal((4, 1, 1)))
    return ds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chains = [(m, p, d, 16) for m in MODELS for p, *_ in LAWS for d in ("bf16", "fp32") if (m, d) != ("gamma", "fp32")]
    chains += [(m, "append", d, 32) for m in MODELS[:2] for d in ("bf16", "fp32")]
    cells = [cell(model, dtype, protocol, size) for model, protocol, dtype, size in chains]
    # One precision has no level: the slope is over the others, on every page.
    lost = cell("beta", "fp16", "append", 16)
    lost["hidden_rel_l2"].values[...] = np.inf
    for place, ds in enumerate([*cells, lost]):
        dataset.write(ds, tmp_path_factory.getbasetemp() / "one-answer" / "sweep" / f"{place:03d}.nc")
    return tmp_path_factory.getbasetemp() / "one-answer"


@pytest.fixture(scope="module")
def sweep(folder: Path) -> Sweep:
    return dataset.folds(drift.open_sweep(folder / "sweep"))


@pytest.fixture(scope="module")
def audited(sweep: Sweep) -> claims.Audit:
    return claims.audit(sweep)


@pytest.fixture(scope="module")
def pages(folder: Path) -> dict[str, str]:
    with in_process.notebooks():
        rendering.render(folder / "sweep", PAGES, folder / "pages", report=lambda line: None)
    return {name: (folder / "pages" / f"{name}.html").read_text() for name in (*PAGES, "index")}


def tables(page: str) -> list[pd.DataFrame]:
    """Tables whose rows all have as many fields as the head has, as text."""
    found = []
    for table in BeautifulSoup(page, "html.parser").find_all("table"):
        head, *rows = ([field.get_text() for field in row.find_all(["th", "td"])] for row in table.find_all("tr"))
        if all(len(row) == len(head) for row in rows):
            found.append(pd.DataFrame(rows, columns=head))
    return found


def with_columns(page: str, *names: str) -> pd.DataFrame:
    return next(table for table in tables(page) if set(names) <= set(map(str, table.columns)))


def text_of(page: str) -> str:
    plain = re.sub(r"<[^>]+>", "", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))
    return " ".join(html.unescape(plain).split())


@dataclass(frozen=True)
class Slope:
    """What a page says of the slope of one fold."""

    value: str
    interval: str
    word: str


def slopes_of_claims(page: str) -> dict[tuple[str, str], Slope]:
    rows = with_columns(page, "claim", "finding", "p (support)")
    table = pd.concat([t for t in tables(page) if list(t.columns) == list(rows.columns)])
    found = {}
    for _, row in table[table["claim"] == "C2 precision"].iterrows():
        said = re.match(r"(\w+)(?: \(.*?\))?: slope (\S+) \(90 % interval (\S+ to \S+)\)", row["finding"])
        assert said, row["finding"]
        fold = row["chain or chains"].rpartition(", ")[0]
        found[row["reading"], fold] = Slope(said[2], said[3], said[1])
    return found


def slopes_of_precision(page: str) -> dict[tuple[str, str], Slope]:
    found = {}
    for _, row in with_columns(page, "fold", "the ladder says").iterrows():
        value, _, interval = str(row["slope"]).partition(" (")
        word = str(row["the ladder says"]).split(" (")[0]
        found[row["reading"], row["fold"]] = Slope(value, interval.rstrip(")"), word)
    return found


def slopes_of_all_pairs(page: str) -> dict[tuple[str, str], Slope]:
    table = with_columns(page, "standard error", "slope").drop_duplicates(["protocol", "model", "chunk size"])
    return {
        (row["protocol"], f"{row['model']}, chunk {row['chunk size']}"): Slope(
            f"{float(row['slope']):.3f}", str(row["90 % interval"]), str(row["verdict"]).split(" (")[0]
        )
        for _, row in table.iterrows()
        if row["slope"] != "–"
    }


# ---------------------------------------------------------------------------------------------- slopes
def test_slope_interval_and_word_of_a_fold_are_the_same_on_all_pages(pages: dict[str, str], sweep: Sweep) -> None:
    wanted = {
        (one.labels["protocol"], "{model}, chunk {chunk_size}".format(**one.labels)): one.slope
        for one in ladder.ladders(sweep)
        if math.isfinite(one.slope.interval.value)
    }
    assert len(wanted) == 2 * (1 + len(LAWS))
    assert {slope.verdict for slope in wanted.values()} >= {Scaling.ROUNDING, Scaling.STRUCTURAL}
    for said in (slopes_of_claims(pages["claims"]), slopes_of_precision(pages["precision"]),
                 slopes_of_all_pairs(pages["precision"])):  # fmt: skip
        assert said.keys() == wanted.keys()
        for fold, slope in wanted.items():
            ends = " to ".join(f"{x:z.3f}" for x in slope.interval.pair)
            assert said[fold] == Slope(f"{slope.interval.value:z.3f}", ends, slope.verdict.value), fold


def test_sentences_on_all_pages_have_the_word_of_the_ladder(pages: dict[str, str], sweep: Sweep) -> None:
    said = ladder.headlines(ladder.ladders(sweep))
    assert set(said) == {name for name, *_ in LAWS}
    for sentence in said.values():
        for name in ("plateau", "precision"):
            assert sentence.split(": ", 1)[1] in text_of(pages[name]), (name, sentence)
    # what figures are titled with
    for name, title in summary.headline(sweep).items():
        assert title in said[name]


def test_models_are_counted_where_they_were_run_at_several_precisions(sweep: Sweep) -> None:
    said = ladder.headlines(ladder.ladders(sweep))["append"]
    assert "in all 2 models (1 more ran at one precision only)" in said


def test_what_the_storage_rounds_is_called_the_same_on_all_pages(pages: dict[str, str]) -> None:
    for name in PAGES:
        assert STORAGE_WORDS.rstrip(".") in text_of(pages[name]), name
    others = Sweep([cell("alpha", "bf16", name, 16) for name, *_ in LAWS[:2]])
    assert STORAGE_WORDS.rstrip(".") not in "".join(ladder.headlines(ladder.ladders(others)).values())


# ---------------------------------------------------------------------------------------------- chains
def verdicts_of_plateau(page: str) -> dict[tuple[str, str], str]:
    table = with_columns(page, "drift, growth per doubling", "against the floor")
    kinds = table["drift, growth per doubling"].str.split(", ").str[0]
    return dict(zip(zip(table["reading"], table["chain"], strict=True), kinds, strict=True))


def named(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    found = {}
    for _, row in table.iterrows():
        chain = f"{row['model']} {row['precision']}, chunk {row['chunk size']}"
        found[row["protocol"], chain] = row["verdict"].split(" (")[0]
    return found


def judged(found: claims.Audit) -> Iterator[tuple[tuple[str, str], str]]:
    for s in found.summaries:
        for f in s.findings if s.claim.name == "C1 plateau" else ():
            yield (s.protocol, f.scope), f.detail["verdict"].replace("_", " ")


def test_every_chain_has_one_verdict_on_all_pages(pages: dict[str, str], audited: claims.Audit) -> None:
    wanted = dict(judged(audited))
    assert len(set(wanted.values())) > 1
    assert verdicts_of_plateau(pages["plateau"]) == wanted
    assert named(with_columns(pages["readings"], "level / other kernels", "verdict")) == wanted
    levels = named(with_columns(pages["plateau"], "level / first", "verdict"))
    assert {chain: levels[chain] for chain in wanted} == wanted


def test_chains_as_deep_in_other_chunks_are_judged(sweep: Sweep, audited: claims.Audit) -> None:
    chains = {scope for (protocol, scope), _ in judged(audited) if protocol == "append"}
    assert {"alpha bf16, chunk 16", "alpha bf16, chunk 32"} <= chains
    assert min(ds.sizes["step"] for ds in judged_chains(sweep.sel(protocol="append"))) >= DEEP_STEPS


def test_chains_models_and_flat_ones_are_counted_alike(pages: dict[str, str], audited: claims.Audit) -> None:
    by_reading: dict[str, list[str]] = {}
    for (protocol, _), verdict in judged(audited):
        by_reading.setdefault(protocol, []).append(verdict)
    table = with_columns(pages["readings"], "reading", "chains").set_index("reading")
    for protocol, kinds in by_reading.items():
        counted = ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds))
        said = table["chains"][protocol]
        assert said.startswith(f"{len(kinds)} chains of {len(MODELS)} models: ")
        assert sorted(said.partition(": ")[2].split(", ")) == sorted(counted.split(", "))
        finding = next(
            s.words for s in audited.summaries
            if (s.claim.name, s.protocol) == ("C1 plateau", protocol)
        )  # fmt: skip
        assert f"of {len(kinds)};" in finding
        for one in counted.split(", "):
            assert one in finding
    for s in audited.summaries:
        if s.claim.name == "C4 plateau" and s.protocol:
            assert [f.scope.split(",")[0] for f in s.findings] == ["3 models", "2 models"], "each model once"


def test_the_standing_to_the_floor_is_the_same_on_all_pages(pages: dict[str, str], sweep: Sweep) -> None:
    wanted = {}
    for curve, one in floor.from_sweep(sweep):
        chain = "{model} {dtype}, chunk {chunk_size}".format(**curve.labels)
        wanted[curve.labels["protocol"], chain] = one.verdict.value.replace("_", " ")
    table = with_columns(pages["plateau"], "against the floor", "chain")
    said = {(r["reading"], r["chain"]): str(r["against the floor"]).split(", ")[0] for _, r in table.iterrows()}
    known = {chain: verdict for chain, verdict in said.items() if verdict != "nan"}
    assert known == {chain: wanted[chain] for chain in known}
    assert len(known) >= 15
    for _, row in with_columns(pages["precision"], "fold", "against the floor").iterrows():
        model, _, chunk = row["fold"].partition(", ")
        for part in row["against the floor"].split("; "):
            dtype, _, rest = part.partition(": ")
            assert rest.split(" (")[0] == wanted[row["reading"], f"{model} {dtype}, {chunk}"]


def test_the_verdict_on_a_claim_is_the_same_on_all_pages(pages: dict[str, str], audited: claims.Audit) -> None:
    wanted = {(s.claim.name, s.protocol): s.status.value for s in audited.summaries if s.protocol}
    word = {"supported": "bears out", "refuted": "contradicts", "undetermined": "leaves open"}
    word["not tested"] = "does not test"
    matrix = with_columns(pages["readings"], "protocol", "C1 plateau", "C2 precision").set_index("protocol")
    for (claim, protocol), status in wanted.items():
        if claim in matrix.columns:
            assert matrix[claim][protocol][2:] == status
        line = next(said for said in claims.answer(audited) if said.startswith(f"{protocol}: "))
        assert line in text_of(pages["claims"])
        parts = {p.strip().split(" C")[0]: p for p in line.partition(": ")[2].rstrip(".").split("; ")}
        if claim not in ("C1 excess", "C1 accumulation"):
            assert claim in parts[word[status]]
    for line in side_by_side.reproduced(audited):
        assert line.split(": ", 1)[1] in text_of(pages["readings"])

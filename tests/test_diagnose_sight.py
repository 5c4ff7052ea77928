"""What may hide in the rounding of 16 bits: contrasts of a pair with itself, measured floors, and bugs that are
planted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest
import scipy.stats
import torch
from bench_tools import bench
from conftest import make_model
from diagnose_numbers import Whole, cut, drawn
from diagnose_tools import Tensors, save

from drift.diagnose import main
from drift.errors import DatasetError
from drift.reading.diagnose import Diagnosis, Verdict, as_dict, diagnose, open_dump, page
from drift.reading.diagnose.compare import Comparison, Profile
from drift.reading.diagnose.contrasts import FACTOR, RATE, STANDS_OUT, boundary, jump, stretches
from drift.reading.diagnose.floors import MARGIN, Text, excesses, first_beyond, pieces, visible
from drift.reading.diagnose.hiding import HIDES
from drift.reading.diagnose.tensors import Place

U16 = 2.0**-8
END = Place("hidden", 2)


# ------------------------------------------------------------------------------------------------ made of numbers
def of_differences(places: dict[Place, np.ndarray], chunk: int) -> Comparison:
    """Lanes whose tokens differ by so much of their norm."""
    profiles, tokens = {}, 0
    for place, difference in places.items():
        tokens = len(difference)
        nothing = np.zeros(0)
        profile = Profile(place, difference, np.ones(tokens), np.zeros(tokens), nothing, nothing, [])
        profile.differing, profile.elements = int(np.count_nonzero(difference)), tokens
        profiles[place] = profile
    segments = [(start, min(start + chunk, tokens)) for start in range(0, tokens, chunk)]
    return Comparison(cast(Any, None), cast(Any, None), segments, profiles, {"A": [], "B": []}, [])


def steps(levels: list[float], chunk: int = 64) -> np.ndarray:
    """[token]: the same difference for all tokens of a step."""
    return np.repeat(np.array(levels), chunk)


def most(runs: int, rate: float) -> int:
    """More events of that rate than this happen in one of a thousand tests."""
    return int(scipy.stats.binom.ppf(1 - 1e-3, runs, rate))


def test_a_difference_that_enters_is_found_at_its_step_and_first_place() -> None:
    first = Place("hidden", 1)
    found = jump(
        of_differences(
            {first: steps([0, 0, 0, 0.005, 0.006, 0.012]), END: steps([0.013, 0.017, 0.014, 0.09, 0.05, 0.04])}, 64
        ),
        U16,
    )
    assert found is not None
    assert (found.entry, found.token, found.here[0]) == (first, 3 * 64, 0)
    assert found.after > FACTOR * found.before
    # What falls back again, what is smaller, and what shared bits before, is none.
    for levels in (
        [0.01, 0.01, 0.01, 0.09, 0.009, 0.09],
        [0.01, 0.01, 0.01, 0.02, 0.02, 0.02],
        [0, 0, 0, 0.01, 0.01, 0.01],
        [1e-3, 1e-3, 1e-3, 0.02, 0.02, 0.02],
    ):
        assert jump(of_differences({END: steps(levels)}, 64), U16) is None


@pytest.mark.parametrize("scatter", [0.09, 0.35])
def test_clean_steps_are_hardly_ever_called_a_jump(scatter: float) -> None:
    draw, runs, accused = np.random.default_rng(0), 200, 0
    for _ in range(runs):
        count = int(draw.integers(5, 13))
        logs = np.log(0.015) + np.log(1.05) * np.log2(1 + np.arange(count)) + scatter * draw.standard_normal(count)
        accused += jump(of_differences({END: steps(np.exp(logs).tolist())}, 64), U16) is not None
    assert accused <= most(runs, RATE)


def test_tokens_at_a_boundary_stand_out_or_do_not() -> None:
    draw, runs, accused = np.random.default_rng(1), 150, 0
    for _ in range(runs):
        accused += boundary(of_differences({END: np.exp(0.5 * draw.standard_normal(128))}, 16), U16) is not None
    assert accused <= most(runs, RATE)
    for last in (False, True):
        tokens = np.exp(0.3 * draw.standard_normal(128))
        tokens[(15 if last else 0) :: 16] *= 3 * STANDS_OUT
        found = boundary(of_differences({END: tokens}, 16), U16)
        assert found is not None
        assert (found.last, found.chunks, found.token) == (last, 7, 31 if last else 16)


def test_stretches_are_steps_and_short_ones_are_taken_together() -> None:
    def of(tokens: int, chunk: int) -> list[tuple[int, int]]:
        return stretches(of_differences({END: np.ones(tokens)}, chunk))

    assert of(24, 8) == [(0, 8), (8, 16), (16, 24)]
    assert of(24, 3) == [(0, 9), (9, 18), (18, 24)]
    assert len(of(512, 512)) == 8
    assert len(of(1024, 1)) == 64
    assert pieces(of_differences({END: np.ones(128)}, 64)) == [(0, 32), (32, 64), (64, 96), (96, 128)]


def texts_of(draw: np.random.Generator, excess: float, count: int, scatter: float) -> list[Text]:
    """Texts whose pair is so many floors apart, on average, at each of four places; two lanes of the floor."""
    places = [Place("hidden", 0), *(Place("hidden", b) for b in range(1, 5))]
    texts = []
    for _ in range(count):
        shared = 0.3 * draw.standard_normal(8)

        def lanes(factor: float, shared: np.ndarray = shared) -> Comparison:
            return of_differences(
                {
                    p: steps((0.01 * factor * np.exp(shared + scatter * draw.standard_normal(8))).tolist(), 32)
                    for p in places
                },
                32,
            )

        texts.append(Text(lanes(excess), (lanes(1.0), lanes(1.0))))
    return texts


@pytest.mark.parametrize("count", [1, 3])
def test_pairs_at_the_margin_are_hardly_ever_beyond_and_those_at_twice_are(count: int) -> None:
    draw, runs = np.random.default_rng(2), 40
    beyond = 0
    for _ in range(runs):
        clean = texts_of(draw, MARGIN, count, 0.08)
        beyond += first_beyond(clean, excesses(clean, U16), U16) is not None
    assert beyond <= most(runs, RATE)
    texts = texts_of(draw, 2 * MARGIN, count, 0.08)
    found = first_beyond(texts, excesses(texts, U16), U16)
    assert found is not None
    assert (found[0].place, found[1]) == (Place("hidden", 1), 0)


def test_more_texts_see_smaller_bugs() -> None:
    draw, sizes = np.random.default_rng(3), []
    for count in (1, 3):
        found = [one for one in excesses(texts_of(draw, 0.9, count, 0.08), U16) if one.start == 0]
        low, high = visible(found) or (0.0, 0.0)
        assert 0 < low <= high
        sizes.append(np.mean([one.smallest / one.floor for one in found]))
    # A bug adds to rounding by squares.
    assert (MARGIN**2 - 0.9**2) ** 0.5 < sizes[1] < sizes[0]


# ------------------------------------------------------------------------------------------------ lanes in files
def rounding(whole: Whole, seed: int, size: float = 1.0, embeddings: bool = False) -> Whole:
    """The same lane with Gaussian noise of so many unit roundoffs at every place."""
    noise = drawn(seed=100 + seed)
    out = {n: (x.float() * (1 + size * U16 * noise[n].float())).bfloat16() for n, x in whole.items()}
    return out if embeddings else out | {"layer.0.hidden": whole["layer.0.hidden"]}


def folders(folder: Path, size: float, texts: int = 3, embeddings: bool = True) -> list[list[Path]]:
    """A, B and two floors per text; B is so many floors from A."""
    made = []
    for text in range(texts):
        a = drawn(dtype=torch.bfloat16, seed=text)
        lanes = [a, rounding(a, 10 * text, size), *(rounding(a, 10 * text + k, 1.0, embeddings) for k in (1, 2))]
        made.append([save(cut(x), folder / f"{text}{k}") for k, x in enumerate(lanes)])
    return made


def against(made: list[list[Path]], **options: Any) -> Diagnosis:
    (a, b, *floor), *texts = [[open_dump(x) for x in text] for text in made]
    return diagnose(a, b, floor=floor, texts=[(x, y, rest) for x, y, *rest in texts], **options)


def test_without_a_floor_16_bits_are_undetermined_and_the_top_of_the_page_says_what_decides(tmp_path: Path) -> None:
    (a, b, *_), *_ = folders(tmp_path, 1.0, 1)
    found = diagnose(open_dump(a), open_dump(b))
    assert (found.verdict, found.exit_code) == (Verdict.UNDETERMINED, 3)
    assert found.could_hide is not None
    assert found.could_hide > HIDES
    top = " ".join(page(found).split("Evidence")[0].split())
    assert "fp32" in top
    assert "--floor" in top
    assert as_dict(found)["could_hide"] == found.could_hide


def test_several_floors_and_texts_decide(tmp_path: Path) -> None:
    clean = against(folders(tmp_path / "clean", 1.0))
    assert (clean.verdict, clean.exit_code) == (Verdict.ROUNDING, 0)
    assert "6 lanes of the floor, 3 texts" in clean.evidence[0].text
    assert clean.could_hide is not None
    assert clean.could_hide < HIDES
    assert "of floor" in page(clean)
    row = next(r for r in as_dict(clean)["places"] if r["kind"] == "hidden" and r["block"] == 2)
    low, high = row["excess"]["over_texts"]
    assert low <= row["excess"]["ratio"] <= high
    wrong = against(folders(tmp_path / "wrong", 2.5))
    assert (wrong.verdict, wrong.exit_code) == (Verdict.STRUCTURAL, 1)
    assert wrong.entry is not None
    assert (wrong.entry.place, wrong.entry.step_b) == (Place("hidden", 1), 0)


def test_a_floor_of_the_same_bits_measures_nothing(tmp_path: Path) -> None:
    made = folders(tmp_path, 1.0, 1)
    found = against([[made[0][0], made[0][1], made[0][0]]])
    assert found.verdict is Verdict.UNDETERMINED
    assert "measure nothing" in found.reason


def test_the_command_takes_floors_and_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, *rest = [[str(x) for x in text] for text in folders(tmp_path, 1.0)]
    more = [word for text in rest for word in ("--text", *text)]
    assert main([first[0], first[1], "--floor", *first[2:], *more, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "rounding"
    with pytest.raises(SystemExit):
        main([first[0], first[1], "--floor", first[2], "--text", *rest[0][:2]])
    assert "--text takes three dumps" in capsys.readouterr().err
    with pytest.raises(DatasetError, match="at least one floor"):
        against([[Path(x) for x in first], [Path(x) for x in rest[0][:2]]])


# ------------------------------------------------------------------------------------------------ planted bugs
@pytest.fixture(scope="module")
def bugs() -> Iterator[ModuleType]:
    """bench/bugs.py."""
    with bench("bugs") as module:
        yield module


def setting_of(bugs: ModuleType, folder: Path) -> Any:
    ids = [torch.randint(3, 97, (96,), generator=torch.Generator().manual_seed(k)) for k in range(2)]
    model = make_model("llama", "bfloat16", hidden_size=64, intermediate_size=96)
    return bugs.Setting(model, bugs.rung("bf16"), ids, 16, folder)


@pytest.fixture(scope="module")
def setting(bugs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return setting_of(bugs, tmp_path_factory.mktemp("bugs"))


def planted(bugs: ModuleType, setting: Any, name: str, mode: str = "alone") -> dict[str, Any]:
    (bug,) = (one for one in bugs.BUGS if one.name == name)
    ((_, row),) = bugs.bug_rows(setting, bug, [0, 1], [mode])
    return cast("dict[str, Any]", row)


def test_a_mask_that_hides_the_last_cached_token_is_never_called_rounding(bugs: ModuleType, setting: Any) -> None:
    alone = planted(bugs, setting, "last_cached_hidden")
    assert alone["outcome"] in ("located right", "undetermined"), alone
    if alone["block"] is not None:
        assert (alone["kind"], alone["block"], alone["step"]) == ("hidden", 1, 3)
    assert planted(bugs, setting, "last_cached_hidden", "floor")["outcome"] in ("located right", "undetermined")


@pytest.mark.parametrize("name", ["position_1", "wrong_token", "stale_chunk"])
def test_bugs_that_have_a_name_are_named(bugs: ModuleType, setting: Any, name: str) -> None:
    assert planted(bugs, setting, name)["outcome"] == "named right"


def test_clean_pairs_are_not_accused_and_no_bug_is_missed_without_a_floor(bugs: ModuleType, setting: Any) -> None:
    for name in ("chunked", "other chunks", "chunked, eager"):
        rows = dict(bugs.clean_rows(setting, name, 0, ["alone", "floor"]))
        assert {row["outcome"] for row in rows.values()} <= {"rounding", "undetermined", "same_bits"}, (name, rows)
    for name in ("scale_5", "window", "value_heads_one"):
        assert planted(bugs, setting, name)["outcome"] != "missed", name


def test_everything_is_as_it_was_when_a_bug_is_through(bugs: ModuleType, setting: Any) -> None:
    def lane() -> Tensors:
        return cast("Tensors", setting.run(0, 16))

    before = lane()
    for bug in bugs.BUGS:
        loop = bug.loop(setting.model)
        if loop is not None:
            assert any(not torch.equal(x, before[n]) for n, x in setting.run(0, 16, loop).items()), bug.name
    assert len(bugs.BUGS) >= 24
    assert all(torch.equal(x, before[name]) for name, x in lane().items())

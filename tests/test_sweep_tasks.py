"""Tasks as an axis of the sweep: planned, named, grouped, computed, interrupted and resumed like every other cell."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import sweep_fixtures
import torch
from sweep_fixtures import Said, small
from sweep_tools import cells, differences
from transformers import AutoModelForCausalLM, DynamicCache

import drift
from drift import dataset
from drift.dataset.task_contract import LANES, NONE
from drift.errors import ConfigError
from drift.running.model.numerics import numerics, rung_of
from drift.running.sweep.cells import Cell
from drift.running.sweep.checking import check
from drift.running.sweep.config import load_config
from drift.running.sweep.outcome import Interrupted
from drift.running.sweep.planning import Plan, plan
from drift.running.sweep.running import run
from drift.running.sweep.selecting import select
from drift.running.tasks.answering import Answer
from drift.running.tasks.examining import Examined, Examiner
from drift.running.tasks.tabling import recorded
from drift.running.tasks.taking import FULL, take_quiz

tiny, here, say = sweep_fixtures.tiny, sweep_fixtures.here, sweep_fixtures.say
SIZES, LENGTH, DOCUMENTS = [48, 96], 640, 3
PROTOCOLS = ["append", "isolated", "streaming(sinks=2,window=60)"]


def asking(tiny: Path, **changes: Any) -> dict[str, Any]:
    """A configuration of task cells that takes a moment."""
    axes = {"name": "asking", "task": "needle", "tokens": LENGTH, "documents": DOCUMENTS, "chunk_size": SIZES,
            "protocol": PROTOCOLS, "allow_beyond_context": True}  # fmt: skip
    return small(tiny, **axes | changes)


def planned(config: dict[str, Any], folder: str = "nowhere") -> Plan:
    return plan(load_config(config), Path(folder), look=False)


# ---------------------------------------------------------------------------------------------- the plan
@pytest.mark.parametrize(
    ("more", "digest", "file"),
    [
        ({}, "b65bcb50c5f406ef5ad7d04a6c58c177e288f3b40d864bfba82f30474a545315", "tiny_bf16_append_c64"),
        (
            {"floor_draws": 2},
            "437242852497cd3d4667938176ffbe1f4d53ebd02788a09ef37a4867673bf2d0",
            "tiny_bf16_append_c64",
        ),
        (
            {"reference": "gold", "protocol": "reprime(token=3)"},
            "220d5666febd37008ae6a240003124d1dca99b29babf8c45fcac182934101409",
            "tiny_bf16_reprime-token-3_gold_c64",
        ),
    ],
)  # fmt: skip
def test_cells_that_measure_drift_are_called_what_they_always_were(more: Any, digest: str, file: str) -> None:
    versions = (("numerics", "1"), ("schema", "2"), ("torch", "2.9.0"), ("transformers", "5.0.0"))
    axes: dict[str, Any] = {
        "model": "/models/tiny", "label": "tiny", "family": "llama", "dtype": "bf16", "chunk_size": 64,
        "protocol": "append", "documents": 4, "tokens": 1024, "corpus": "pydoc", "attn_implementation": "sdpa",
        "device": "cpu", "logit_stride": 5, "half_matmul": "float32", "seed": 0, "checkpoint": "a" * 64,
        "text": "b" * 64, "versions": versions,
    }  # fmt: skip
    cell = Cell(**axes | more)
    assert cell.hash == digest
    assert cell.file == f"{file}_{digest[:16]}.nc"


def test_the_axis_adds_cells_and_changes_none(tiny: Path) -> None:
    plain = {cell.file: cell.hash for cell in planned(small(tiny)).cells}
    grids = [{}, {"task": ["none", "needle"], "tokens": LENGTH, "allow_beyond_context": True}]
    both = planned(small(tiny, grids=grids))
    assert plain.items() <= {cell.file: cell.hash for cell in both.cells}.items()
    asked = [cell for cell in both.cells if cell.task]
    assert len(asked) == 4
    assert len(both.cells) == 12
    for cell in asked:
        assert cell.file == f"tiny_fp32_needle_{cell.protocol}_c{cell.chunk_size}_t{LENGTH}_{cell.hash[:16]}.nc"
        assert cell.record["task"] == "needle"
        assert {"schema", "logit_stride", "floor", "reference"}.isdisjoint({*cell.record, *cell.record["versions"]})
    assert select(both, ["task=needle"]) == tuple(asked)
    assert len(select(both, ["task=none"])) == 8


def test_cells_of_a_task_share_what_full_attention_answers(tiny: Path) -> None:
    made = planned(asking(tiny, task=["needle", "needle(keys=2)"], corpus=[str(tiny / "text.txt"), "pydoc"]))
    assert [len(group.cells) for group in made.groups()] == [6, 6], "a text is no axis of a task"
    assert len({group.cells[0].weights for group in made.groups()}) == 1
    estimate = made.estimate(made.cells)
    assert estimate["seconds"] > made.estimate(made.cells[:1])["seconds"] > 0
    assert estimate["unknown"] == 0
    assert made.groups()[0].title.endswith(", ".join(f"{c.protocol}/{c.chunk_size}" for c in made.groups()[0].cells))
    assert "needle in 3 x 640 tokens" in made.groups()[0].title


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"documents": 4}, {"tokens": 641}, {"questions": 2}, {"dtype": "fp64"}, {"chunk_size": [50]},
        {"protocol": ["restart"]}, {"attn_implementation": "eager"}, {"task": "needle(kind=uuid)"},
        {"task": "needle(haystack=needles)"},
    ],
    ids=str,
)  # fmt: skip
def test_what_changes_an_answer_changes_the_cell(change: dict[str, Any], tiny: Path) -> None:
    before = {cell.hash for cell in planned(asking(tiny)).cells}
    assert not before & {cell.hash for cell in planned(asking(tiny, **change)).cells}


@pytest.mark.parametrize("change", [{"logit_stride": 2}, {"floor_draws": 0}, {"corpus": "pydoc"}, {"controls": True}])
def test_what_changes_no_answer_changes_no_cell(change: dict[str, Any], tiny: Path) -> None:
    assert [c.file for c in planned(asking(tiny, **change)).cells] == [c.file for c in planned(asking(tiny)).cells]


def test_a_haystack_that_changes_makes_other_cells(tiny: Path, here: Path) -> None:
    text = here / "hay.txt"
    task = f"needle(haystack={text})"
    text.write_text("One. Two. Three.", encoding="utf-8")
    (before, *_) = planned(asking(tiny, task=task)).cells
    assert before.corpus == str(text)
    text.write_text("One. Two. Four.", encoding="utf-8")
    assert before.hash not in {cell.hash for cell in planned(asking(tiny, task=task)).cells}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "needel"}, "task: Unknown task 'needel'. Did you mean 'needle'?"),
        ({"task": "needle(keys=0)"}, "keys must lie between 1 and 64"),
        ({"task": "needle(haystack=random)"}, "has no text"),
        ({"protocol": ["one_step(append)"]}, "only a pass beside it has"),
        ({"protocol": ["decode(append)"]}, "name the protocol whose cache is generated from"),
        ({"reference": ["full", "gold"]}, r"reference\[1\]: the answers of a task are held against full attention"),
        ({"allow_beyond_context": False}, "beyond the context"),
        ({"questions": 0}, "questions: must be at least 1"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_computed(tiny: Path, change: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        planned(asking(tiny, **change))


def test_a_dry_run_says_what_is_asked(tiny: Path, here: Path, say: Said) -> None:
    config = here / "asking.json.yaml"
    config.write_text(json.dumps(asking(tiny, task=["none", "needle"], protocol="append", chunk_size=64)))
    code, out, _ = say(config, "--dry-run")
    assert code == 0
    heads, *rows = [line.split() for line in out.splitlines()[:3]]
    assert sorted(row[heads.index("task")] for row in rows) == ["needle", "none"]
    code, out, _ = say(config, "--dry-run", "--json", "--only", "task=needle")
    assert [cell["task"] for cell in json.loads(out)["plan"]] == ["needle"]


# ---------------------------------------------------------------------------------------------- computing
@pytest.fixture(scope="module")
def computed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed sweep of :func:`asking` with full attention as a fold of its own."""
    out = tmp_path_factory.mktemp("asked") / "out"
    summary = run(load_config(asking(tiny, protocol=["full", *PROTOCOLS])), out)
    assert (summary.done, summary.failed) == (8, 0), summary.failures
    return out


def of(folder: Path, protocol: str, size: int) -> Any:
    sweep = dataset.open_sweep(folder)
    assert not sweep.problems
    assert not len(sweep)
    (found,) = [ds for ds in sweep.tasks if ds["protocol"].item() == protocol and ds["chunk_size"].item() == size]
    return found


@pytest.mark.parametrize("size", SIZES)
def test_cells_hold_what_is_taken_one_by_one(computed: Path, tiny: Path, size: int) -> None:
    model, tokenizer = drift.load_model(str(tiny / "tiny"), dtype="fp32", device="cpu")
    taken = take_quiz(model, tokenizer, "needle", LENGTH, protocols=PROTOCOLS, chunk_size=size, documents=DOCUMENTS,
                      allow_beyond_context=True)  # fmt: skip
    full = taken.of(FULL)
    for protocol in taken.protocols[1:]:
        ds = of(computed, protocol, size)
        for lane, rows in zip(LANES, (full, taken.of(protocol)), strict=True):
            for row in rows:
                at, answer = (row.document, row.question), row.answer
                for name in ("exact", "score", "log_likelihood", "rank", "margin", "other_log_likelihood"):
                    assert ds[f"{name}_{lane}"].values[at] == getattr(answer, name), (name, lane)
                assert ds[f"said_{lane}"].values[at] == answer.text
                assert ds[f"generated_tokens_{lane}"].values[at] == len(answer.tokens)
        for row in taken.of(protocol):
            at = (row.document, row.question)
            assert ds["first_difference"].values[at] == (NONE if row.first_difference is None else row.first_difference)
            assert ds["fact_distance"].values[at].tolist() == list(row.distances)
            assert ds["fact_start"].values[at].tolist() == [place.start for place in row.places]
            assert ds["text_tokens"].values[row.document] == row.text_tokens
        assert taken.controls is not None
        np.testing.assert_array_equal(ds["without_score"].values.ravel(), [a.score for a in taken.controls.without])
        assert ds["again_same"].values.tolist() == [1, NONE, NONE]
        steps = -(-ds["text_tokens"].values // size)
        assert (np.isfinite(ds["fold_seconds"].values).sum(1) == steps).all()
        assert ((ds["fold_carried_bytes"].values != NONE).sum(1) == steps).all()
        if protocol.startswith("streaming"):
            assert json.loads(ds.attrs["protocol_json"])["options"] == {"sinks": 2, "window": 60, "positions": "cache"}
        if protocol == "append":
            last = ds["fold_carried_bytes"].values[range(DOCUMENTS), steps - 1]
            np.testing.assert_array_equal(last, ds["full_carried_bytes"].values)


@pytest.mark.parametrize("size", SIZES)
def test_full_attention_as_a_fold_is_full_attention(computed: Path, size: int) -> None:
    ds = of(computed, "full", size)
    for name in ("said", "log_likelihood", "other_log_likelihood", "rank", "margin"):
        np.testing.assert_array_equal(ds[f"{name}_fold"].values, ds[f"{name}_full"].values)
    assert (ds["first_difference"].values == NONE).all()
    assert (ds["answer_kl"].values == 0).all()
    assert (ds["answer_logit_rel_l2"].values == 0).all()
    assert (of(computed, "isolated", size)["answer_kl"].values > 0).all()


def test_kl_and_drift_of_the_question_are_those_of_the_definition() -> None:
    draw = torch.Generator().manual_seed(1)
    full, fold = (torch.randn((2, 97), generator=draw, dtype=torch.float64) for _ in range(2))
    answer = Answer("", (1,), None, False, 0.0, (-1.0,), 1, 0.5, (-2.0,), 0)  # type: ignore[arg-type]

    def made(scores: torch.Tensor) -> Examined:
        return Examined((answer, answer), scores, (), {})

    found = recorded(made(fold), recorded(made(full)))
    p, q = (scipy.special.softmax(scores.numpy(), axis=-1) for scores in (full, fold))
    np.testing.assert_allclose(found["answer_kl"], scipy.special.rel_entr(p, q).sum(-1), rtol=1e-10)
    want = np.linalg.norm((fold - full).numpy(), axis=-1) / np.linalg.norm(full.numpy(), axis=-1)
    np.testing.assert_allclose(found["answer_logit_rel_l2"], want, rtol=1e-12)


def test_log_likelihoods_are_those_of_one_plain_pass(computed: Path, tiny: Path) -> None:
    """The whole way through plan, sweep and file, against transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(tiny / "tiny", dtype=torch.float32)
    _, tokenizer = drift.load_model(str(tiny / "tiny"), dtype="fp32", device="cpu")
    made = take_quiz(model, tokenizer, "needle", LENGTH, protocols=[], documents=DOCUMENTS, controls=False,
                     allow_beyond_context=True).quiz  # fmt: skip
    ds = of(computed, "append", SIZES[0])
    for at, document in enumerate(made.documents):
        (asked,) = document.questions
        ids = torch.tensor([[*document.tokens, *asked.tokens, *asked.answer]])
        with numerics(rung_of(model.dtype)), torch.inference_mode():
            scores = model(ids).logits[0, -len(asked.answer) - 1 : -1].double().log_softmax(-1)
        want = float(scores[range(len(asked.answer)), asked.answer].sum())
        for lane in LANES:
            assert ds[f"log_likelihood_{lane}"].values[at, 0] == pytest.approx(want, rel=1e-4)


def test_full_attention_with_noise_is_a_plain_pass_over_disturbed_embeddings(tiny: Path, here: Path) -> None:
    """The floor of an answer: text, question and answer are disturbed by what their tokens decide, and nothing else."""
    label, size = "full(noise=1000000,seed=1)", 1e6 * 2.0**-24
    summary = run(load_config(asking(tiny, protocol=label, chunk_size=48, task="needle(keys=2)", questions=2)), here)
    assert (summary.done, summary.failed) == (1, 0), summary.failures
    ds = of(here, label, 48)
    model = AutoModelForCausalLM.from_pretrained(tiny / "tiny", dtype=torch.float32)
    _, tokenizer = drift.load_model(str(tiny / "tiny"), dtype="fp32", device="cpu")
    made = drift.quiz(tokenizer, "needle(keys=2)", LENGTH, documents=DOCUMENTS, questions=2)
    for at, document in enumerate(made.documents):
        for question, asked in enumerate(document.questions):
            cache, done, scores = DynamicCache(config=model.config), list[int](), list[torch.Tensor]()
            for tokens in (document.tokens, asked.tokens, asked.answer[:-1]):
                done += tokens
                digest = hashlib.sha256(np.array(done, dtype="<i8").tobytes()).digest()
                draw = np.random.default_rng((1, *np.frombuffer(digest, dtype="<u4").tolist()))
                rows = model.get_input_embeddings()(torch.tensor([tokens]))
                rows = rows * (1 + size * torch.from_numpy(draw.standard_normal(rows.shape[1:])))
                with torch.inference_mode():
                    scores.append(model(inputs_embeds=rows.float(), past_key_values=cache).logits[0])
            every = torch.cat([scores[1][-1:], scores[2]]).double().log_softmax(-1)
            want = float(every[range(len(asked.answer)), asked.answer].sum())
            assert ds["log_likelihood_fold"].values[at, question] == pytest.approx(want, rel=1e-5)
            assert ds["log_likelihood_full"].values[at, question] != pytest.approx(want, rel=1e-4)
    assert (ds["answer_logit_rel_l2"].values > 0).all()


def test_cells_say_what_the_sweep_reckons_they_take_and_the_published_size(computed: Path, tiny: Path) -> None:
    ds = of(computed, "append", 48)
    found = json.loads(ds.attrs["reckoned_json"])
    said = found["published"]
    # 8.03e9 weights and 131072 tokens x 32 layers x 8 heads x 128 features x 2 of cache, 2 bytes each.
    least = 2 * (8.03e9 + 2 * 131_072 * 32 * 8 * 128)
    assert least < said["memory_bytes"] < 2.5 * least
    assert (said["tokens"], said["chunk_size"], said["dtype"], said["device"]) == (131_072, 48, "bf16", "cuda")
    assert said["shape"] == {"layers": 32, "heads": 32, "kv_heads": 8, "head_dim": 128, "parameters": 8_030_261_248}
    config = json.loads((tiny / "tiny" / "config.json").read_text())
    assert found["own"]["shape"]["layers"] == config["num_hidden_layers"]
    assert 0 < found["own"]["fold_seconds"] < said["fold_seconds"]
    assert 0 < found["own"]["memory_bytes"] < said["memory_bytes"]


def test_the_folder_is_what_it_should_be(computed: Path) -> None:
    report = check(computed)
    assert report.findings == []
    assert (report.sound, report.planned) == (8, 8)
    assert not (computed / ".documents").exists()


def test_a_fold_that_fails_takes_no_other_along(tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Examiner.lane

    def spoiled(self: Examiner, protocol: Any, *given: Any) -> Iterator[Examined]:
        if protocol.label == "isolated":
            raise RuntimeError("spoiled")
        return real(self, protocol, *given)

    monkeypatch.setattr(Examiner, "lane", spoiled)
    summary = run(load_config(asking(tiny, chunk_size=64)), here / "out")
    assert (summary.done, summary.failed) == (2, 1)
    assert "spoiled" in summary.failures[0]["reason"]


def test_facts_that_do_not_lie_apart_fail_their_own_cells(tiny: Path, here: Path) -> None:
    config = asking(tiny, task="hops", protocol="append", chunk_size=[48, 500], documents=1, tokens=800)
    summary = run(load_config(config), here / "out")
    assert (summary.done, summary.failed) == (1, 1)
    assert "several of the facts" in summary.failures[0]["reason"]


# ---------------------------------------------------------------------------------------------- interruptions
def test_interrupted_anywhere_it_goes_on_where_it_was(
    computed: Path, tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(asking(tiny, protocol=["full", *PROTOCOLS]))
    texts = (1 + 8) * DOCUMENTS + 2
    real, taken = Examiner._examined, list[int]()
    stops = iter([1, 4, 3, 7, 1000])
    stop = [0]

    def counted(self: Examiner, *given: Any) -> Examined:
        if stop[0] == 0:
            raise KeyboardInterrupt
        stop[0] -= 1
        taken.append(1)
        return real(self, *given)

    monkeypatch.setattr(Examiner, "_examined", counted)
    before: dict[str, Any] = {}
    for texts_now in stops:
        stop[0] = texts_now
        try:
            summary = run(config, here / "out")
        except Interrupted as interrupted:
            summary = interrupted.summary
        after = cells(here / "out")
        assert before.items() <= after.items()
        before = after
    assert (summary.done, summary.left) == (8, 0)
    # A text is asked again only where the cell that it was kept for was written, and full attention with it.
    assert len(taken) == texts
    assert differences(here / "out", computed, sorted(before)) == []
    assert sorted(cells(computed)) == sorted(before)
    assert not (here / "out" / ".documents").exists()

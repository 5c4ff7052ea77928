"""Questions put to full attention and to folds: against plain loops of transformers, and against asking alone."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np
import pytest
import torch
from conftest import half_attention, make_model
from rounding import gamma
from transformers import DynamicCache

import drift
from drift.errors import ArgumentError, ConfigError
from drift.running.folding.folded import Folded, fold
from drift.running.folding.generating import Stop
from drift.running.model.numerics import numerics, rung_of
from drift.running.protocols import parse
from drift.running.tasks.answering import Answer, log_likelihoods
from drift.running.tasks.prefills import prefills
from drift.running.tasks.quizzes import Quiz, quiz
from drift.running.tasks.taking import FULL, SPARE_TOKENS, Controls, Row, Taken, take_quiz

pytestmark = pytest.mark.numerical

SIZE, LENGTH, NEW = 48, 800, 5
PROTOCOLS = [
    "append",
    "reprime",
    "isolated",
    "streaming(sinks=2,window=60)",
    "evict(budget=80)",
    "quantized(format=int8)",
]


class Ascii:
    """A tokenizer of single characters."""

    eos_token_id = None
    bos_token_id = 1

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 128 for letter in text]}

    def decode(self, tokens: Any, **options: Any) -> str:
        return "".join(map(chr, tokens))


def model_of(family: str = "llama", dtype: str = "float32") -> Any:
    model = make_model(family, dtype, vocab_size=128, max_position_embeddings=1024)
    model.generation_config.eos_token_id = None
    return model


def made(label: str = "needle", documents: int = 2, questions: int = 4, length: int = LENGTH) -> Quiz:
    return quiz(Ascii(), label, length, documents=documents, questions=questions)


def taken(model: Any, what: Quiz, protocols: str | list[str] | tuple[str, ...] = (), **options: Any) -> Taken:
    given = {"chunk_size": SIZE, "controls": False, "max_new_tokens": NEW, **options}
    return take_quiz(model, Ascii(), what, protocols=protocols, **given)


def plain(model: Any, passes: list[list[int]], new: int) -> tuple[torch.Tensor, list[int]]:
    """Scores [token, vocabulary] after the last token of all passes but the last and after each of that; new tokens."""
    cache = DynamicCache(config=model.config)
    with numerics(rung_of(model.dtype)), torch.inference_mode():
        *_, before = [model(torch.tensor([ids]), past_key_values=cache, logits_to_keep=1) for ids in passes[:-1]]
        scores = torch.cat([before.logits[0], model(torch.tensor(passes[-1:]), past_key_values=cache).logits[0]])
        cache = DynamicCache(config=model.config)
        for ids in passes[:-1]:
            row = model(torch.tensor([ids]), past_key_values=cache, logits_to_keep=1).logits[0, -1]
        tokens = [int(row.argmax())]
        while len(tokens) < new:
            row = model(torch.tensor([tokens[-1:]]), past_key_values=cache).logits[0, -1]
            tokens.append(int(row.argmax()))
    return scores, tokens


def chunked(ids: tuple[int, ...]) -> list[list[int]]:
    return [list(ids[at : at + SIZE]) for at in range(0, len(ids), SIZE)]


@pytest.mark.parametrize("family", ["llama", "gemma3-short-window", "qwen3-moe"])
def test_answers_are_those_of_a_plain_loop(family: str) -> None:
    model, what = model_of(family), made("needle(keys=2)")
    rows = {(row.document, row.question, row.protocol): row for row in taken(model, what, ["append"]).rows}
    assert len(rows) == 8
    for at, document in enumerate(what.documents):
        for question, asked in enumerate(document.questions):
            first, behind = list(asked.answer[:-1]), asked.first
            for protocol, passes in (
                (FULL, [list(document.tokens), list(asked.tokens)]),
                ("append", [*chunked(document.tokens), *chunked(asked.tokens)]),
            ):
                scores, tokens = plain(model, [*passes, first], NEW)
                answer = rows[at, question, protocol].answer
                assert list(answer.tokens) == tokens
                assert answer.text == Ascii().decode(tokens)
                # The same bits; a sum of 128 exponentials, and what is left of it in the logarithm.
                want = scores.double().log_softmax(-1).numpy()[range(len(asked.answer)), asked.answer]
                np.testing.assert_allclose(answer.log_likelihoods, want, rtol=0, atol=gamma(256))
                ordered, token = scores[behind].double().tolist(), asked.answer[behind]
                assert answer.rank == 1 + sum(score > ordered[token] for score in ordered)
                assert answer.margin == ordered[token] - max(ordered[:token] + ordered[token + 1 :])
                assert answer.stopped is Stop.LENGTH
                assert answer.nonfinite == 0


def test_log_likelihood_is_that_of_one_pass_in_float64() -> None:
    """Teacher forcing in chunks is the same function as one pass over everything, up to rounding."""
    model, what = model_of(dtype="float64"), made("tracking(hops=1,examples=0)", documents=1)
    found = taken(model, what, ["append"])
    (document,) = what.documents
    (asked,) = document.questions
    ids = torch.tensor([[*document.tokens, *asked.tokens, *asked.answer]])
    with numerics(rung_of(model.dtype)), torch.inference_mode():
        scores = model(ids).logits[0, -len(asked.answer) - 1 : -1]
    want = float(scores.log_softmax(-1)[range(len(asked.answer)), asked.answer].sum())
    for row in found.rows:
        assert row.answer.log_likelihood == pytest.approx(want, rel=1e-10)
        assert row.answer.log_likelihood_per_token == row.answer.log_likelihood / len(asked.answer)
    wrong = np.log(128)  # nats per token, of a model that knows nothing
    assert want < -len(asked.answer) * wrong / 4, "a likelihood that would be there without a text"


def test_log_likelihoods_in_closed_form() -> None:
    scores = torch.log(torch.tensor([[1.0, 2.0, 5.0], [8.0, 1.0, 1.0]])) + torch.tensor([[3.0], [-400.0]])
    np.testing.assert_allclose(log_likelihoods(scores, [2, 1]), np.log([5 / 8, 1 / 10]), rtol=1e-4)


def alone(what: Quiz, document: int, question: int) -> Quiz:
    """One question of one text."""
    text = what.documents[document]
    one = replace(text, questions=(text.questions[question],))
    return replace(what, documents=(one,), without=replace(what.without, questions=one.questions))


def without_others(answer: Answer) -> Answer:
    return replace(answer, other_log_likelihoods=())


@pytest.mark.parametrize("label", PROTOCOLS)
def test_questions_on_one_prefill_are_asked_as_if_alone(label: str) -> None:
    model, what = model_of(), made("needle(keys=3)", documents=1)
    together = taken(model, what, [label])
    for question in range(3):
        for protocol in (FULL, together.protocols[1]):
            (row,) = taken(model, alone(what, 0, question), [label]).of(protocol)
            (same,) = [row for row in together.of(protocol) if row.question == question]
            assert without_others(row.answer) == without_others(same.answer)
    answers = [row.answer.log_likelihoods for row in together.rows]
    assert len(set(answers)) == len(answers), "every question and lane has numbers of its own"


@pytest.mark.parametrize("label", [*PROTOCOLS, "shifted(append,step=5,by=2)", "full"])
def test_texts_that_begin_alike_are_folded_as_if_alone(label: str) -> None:
    model, what = model_of(), made(documents=4)
    texts = [document.tokens for document in what.documents]
    bound = parse(label).bind(lambda: 1)
    together, homes = [], set[int]()
    folds = prefills(model, texts, SIZE, bound, 60)
    for _ in texts:
        folded = next(folds)
        together.append((folded.logits.clone(), [(x.keys.clone(), x.values.clone()) for x in folded.cache.layers]))
        assert [step.chunk for step in folded.steps] == list(bound.chunks(len(folded.tokens), SIZE))
        homes.add(folded.cache.layers[0].keys.data_ptr())
        del folded
    for text, (logits, layers) in zip(texts, together, strict=True):
        want = fold(model, text, SIZE, bound)
        assert torch.equal(want.logits, logits)
        for layer, (keys, values) in zip(want.cache.layers, layers, strict=True):
            assert torch.equal(layer.keys, keys)
            assert torch.equal(layer.values, values)
    if label == "append":
        assert len(homes) == 1, "all texts lie in the same memory, one after the other"


def test_chunks_in_front_of_a_needle_are_computed_once() -> None:
    model, what = model_of(), made(documents=4)
    texts = [document.tokens for document in what.documents]
    seen = list[int]()
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    folds = prefills(model, texts, SIZE, parse("append"), 60)
    for _ in texts:
        next(folds)
    hook.remove()
    starts = [document.places[0].start // SIZE * SIZE for document in what.documents]
    # The chunks in front of the needle of each text are taken once, with the next text; what follows, by each.
    assert sum(seen) <= sum(map(len, texts)) - sum(starts[1:-1])


@pytest.mark.parametrize("label", PROTOCOLS[1:])
def test_folds_are_told_from_full_attention(label: str) -> None:
    half_attention("bfloat16", heads=4, tokens=LENGTH, features=8)
    model, what = model_of(dtype="bfloat16"), made()
    found = taken(model, what, [label])
    full, lane = found.of(FULL), found.of(found.protocols[1])
    assert [row.answer.log_likelihoods for row in full] != [row.answer.log_likelihoods for row in lane]
    for row, whole in zip(lane, full, strict=True):
        same = row.answer.tokens == whole.answer.tokens
        assert (row.first_difference is None) == same
        if not same:
            at = row.first_difference
            assert row.answer.tokens[:at] == whole.answer.tokens[:at]
    assert all(row.first_difference is None for row in full)


def test_rows_say_where_the_facts_lie() -> None:
    what, told = made("hops", documents=2), list[Row]()
    found = taken(model_of(), what, ["append", "isolated"], on_row=told.append)
    assert told == list(found.rows)
    assert found.protocols == (FULL, "append", "isolated")
    assert taken(model_of(), what, "append").protocols == taken(model_of(), what, ["append", "full"]).protocols
    assert [(row.document, row.question) for row in found.of("isolated")] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for row in found.rows:
        document = what.documents[row.document]
        assert row.distances == document.distances(row.question, SIZE)
        tokens = len(document.tokens)
        assert row.places == document.needed(row.question)
        assert row.text_tokens == tokens
        assert row.depths == tuple(place.start / tokens for place in row.places)
        # By the chunks that the fold really took: the question is in the one behind the last.
        chunks = parse("append").chunks(tokens, SIZE)
        holding = [next(c.step for c in chunks if c.start < p.stop <= c.stop) for p in document.needed(row.question)]
        assert row.distances == tuple(chunks[-1].step + 1 - step for step in holding)


def test_what_was_taken_is_json_and_adds_up() -> None:
    found = taken(model_of(), made(), ["append"], controls=True)
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert len(told["rows"]) == len(found.rows) == 4
    for row, said in zip(found.rows, told["rows"], strict=True):
        assert said["facts"] == [[place.start, place.stop] for place in row.places]
        assert said["log_likelihood"] == pytest.approx(sum(said["log_likelihoods"]), rel=1e-12)
    assert told["controls"] == {"questions": 2, "found_without": 0, "again_same": True}
    full, lane = found.of(FULL), found.of("append")
    summary = found.summary("append")
    assert summary["questions"] == 2
    assert summary["exact"] == sum(row.answer.exact for row in lane)
    change = [a.answer.log_likelihood - b.answer.log_likelihood for a, b in zip(lane, full, strict=True)]
    assert summary["log_likelihood_change"] == pytest.approx(sum(change) / 2, rel=1e-12)
    assert found.summary(FULL)["log_likelihood_change"] == 0
    assert found.summary(FULL)["same_text"] == 2


def test_scores_that_are_no_numbers_are_counted_and_are_json() -> None:
    model = model_of()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    found = taken(model, made(documents=1))
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    (asked,) = found.quiz.documents[0].questions
    assert told["rows"][0]["nonfinite"] == NEW + len(asked.answer)
    assert told["rows"][0]["log_likelihood"] is None


# ---------------------------------------------------------------------------------------------- controls
def test_full_attention_twice_is_the_same_and_another_model_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model, what = model_of(), made("needle(keys=2)")
    found = taken(model, what, controls=True).controls
    assert found is not None
    assert found.again_same
    assert found.again == tuple(row.answer for row in taken(model, what).of(FULL) if row.document == 0)
    assert len(found.without) == 4
    texts = list[int]()
    real = Folded.feed

    def unsteady(self: Folded, tokens: Any, **options: Any) -> Any:
        texts.append(1)
        with torch.no_grad():
            model.model.norm.weight.mul_(1 + 2**-10)
        return real(self, tokens, **options)

    monkeypatch.setattr(Folded, "feed", unsteady)
    unsteady_controls = taken(model, what, controls=True).controls
    assert unsteady_controls is not None
    assert not unsteady_controls.again_same


def answered(score: float) -> Answer:
    return Answer("", (1,), Stop.LENGTH, score == 1, score, (-1.0,), 1, 0.5, (-2.0,), 0)


def test_what_is_found_without_facts_is_counted() -> None:
    assert Controls((answered(0), answered(0.25), answered(1)), (), True).found_without == 2


def test_without_facts_the_text_is_another_and_the_question_the_same() -> None:
    model, what = model_of(), made()
    with_facts = taken(model, what, controls=True)
    controls = with_facts.controls
    assert controls is not None
    (first, *_), (answer, *_) = with_facts.of(FULL), controls.without
    assert answer.log_likelihoods != first.answer.log_likelihoods
    folded = drift.fold(model, what.without.tokens, LENGTH, "full")
    folded.feed(what.documents[0].questions[0].tokens)
    assert (
        answer.log_likelihoods[0] == log_likelihoods(folded.logits[None], what.documents[0].questions[0].answer[:1])[0]
    )


@pytest.mark.parametrize(("documents", "questions"), [(3, 1), (2, 2), (1, 2), (1, 1)])
def test_the_wrong_answer_is_another_texts_or_another_one(documents: int, questions: int) -> None:
    model, what = model_of(), made("needle(keys=2)", documents, questions)
    for row in taken(model, what).rows:
        document = what.documents[row.document]
        asked = document.questions[row.question]
        folded = drift.fold(model, document.tokens, LENGTH, "full")
        folded.feed(asked.tokens)
        others = [
            q.answer
            for text in what.documents
            for q in text.questions
            if text is not document or len(what.documents) == 1
        ]
        made_up = [tuple(Ascii()(" " + other)["input_ids"]) for other in asked.question.others]
        candidates = [answer for answer in others if answer != asked.answer] or made_up
        first = [log_likelihoods(folded.logits[None], answer[:1])[0] for answer in candidates]
        assert row.answer.other_log_likelihoods[0] in first
        assert row.answer.other_log_likelihoods != row.answer.log_likelihoods
        assert {len(answer) for answer in candidates} == {len(row.answer.other_log_likelihoods)}


# ---------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"protocols": ["one_step(append)"]}, "only a pass beside it has"),
        ({"protocols": ["decode(append)"]}, "name the protocol whose cache is generated from"),
        ({"protocols": ["appendix"]}, "Unknown protocol"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 900}, "beyond the model's context of 1024"),
        ({"controls": 1}, "controls is 1"),
        ({"on_row": 1}, "on_row is 1"),
    ],
)
def test_what_cannot_be_taken_is_said_before_anything_is_computed(
    options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of()

    @wraps(type(model).forward)
    def never(*given: Any, **more: Any) -> None:
        raise AssertionError("something was computed")

    monkeypatch.setattr(type(model), "forward", never)
    with pytest.raises(ConfigError, match=said):
        taken(model, made(), **options)


def test_facts_that_must_lie_apart_do() -> None:
    with pytest.raises(ConfigError, match=r"chunks of 300 tokens hold several of the facts.*smaller chunks"):
        taken(model_of(), made("hops"), ["append"], chunk_size=300)
    taken(model_of(), made("hops"), [], chunk_size=300)


def test_a_length_is_needed_unless_a_quiz_is_there() -> None:
    model = model_of()
    with pytest.raises(ConfigError, match="Give tokens"):
        take_quiz(model, Ascii(), "needle")
    with pytest.raises(ArgumentError, match="tokens is 0"):
        take_quiz(model, Ascii(), "needle", 0)
    with pytest.raises(ConfigError, match="made already"):
        take_quiz(model, Ascii(), made(), LENGTH)
    found = drift.take_quiz(model, Ascii(), "needle", LENGTH, protocols=[], documents=2, controls=False)
    assert found.quiz == replace(made(), prompt=found.quiz.prompt)
    assert {len(row.answer.tokens) for row in found.rows} == {len(" 1234567") + SPARE_TOKENS}
    assert drift.quiz(Ascii(), "needle", LENGTH, documents=2).documents == found.quiz.documents


# ---------------------------------------------------------------------------------------------- a trained checkpoint
def test_a_trained_model_finds_a_number_and_streaming_forgets_it(smollm2: str) -> None:
    half_attention("bfloat16", heads=9, tokens=220, features=64)
    model, tokenizer = drift.load_model(smollm2)
    found = take_quiz(model, tokenizer, "needle", 220, protocols=["append", "streaming(sinks=4,window=32)"],
                      chunk_size=32, documents=1, max_new_tokens=9)  # fmt: skip
    full, append, streaming = (found.of(protocol)[0] for protocol in found.protocols)
    for row in (full, append):
        assert row.answer.exact
        assert row.answer.rank == 1
        assert row.answer.other_log_likelihood < row.answer.log_likelihood - 5
    assert streaming.distances[0] > 2, "its window holds one chunk"
    assert not streaming.answer.exact
    assert streaming.first_difference is not None
    assert found.controls is not None
    assert found.controls.found_without == 0
    assert found.controls.again_same

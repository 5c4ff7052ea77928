"""Generating from a fold: against transformers' own chunked prefill, and what a person sees of it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import FAMILIES, half_attention
from sweep_tools import text_file, tiny_checkpoint
from test_folding import REFUSED, model_of, text_of

import drift
from drift import generate as generate_door
from drift.errors import ConfigError
from drift.generate import main
from drift.running.checkpoints.loading import load_model
from drift.running.folding import sizing
from drift.running.folding.folded import Folded
from drift.running.folding.generating import Stop, generate
from drift.running.folding.prompts import Prompt
from drift.running.model.numerics import numerics, rung_of
from drift.running.protocols import parse
from drift.running.protocols.decode import Decode
from drift.running.sweep import memory

pytestmark = pytest.mark.numerical

SIZE, NEW = 8, 6
TEMPLATE = (
    "{% for m in messages %}<s>[{{ m['role'] }}] {{ m['content'] | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


class Letters:
    """A tokenizer of numbers, for models without one: it decodes and does nothing else."""

    eos_token_id = bos_token_id = None

    def decode(self, tokens: list[int], **options: Any) -> str:
        return " ".join(map(str, tokens))

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(letter) % 90 for letter in text]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("generate") / "tiny")
    return *load_model(str(folder), "fp32"), folder


@pytest.fixture
def chatty(tiny: Any) -> Any:
    """The tokenizer with a chat template, for one test."""
    tiny[1].chat_template = TEMPLATE
    yield tiny
    tiny[1].chat_template = None


def by_transformers(model: Any, text: torch.Tensor, cache: Any = None, new: int = NEW) -> Any:
    with numerics(rung_of(model.dtype)):
        return model.generate(
            text[None],
            attention_mask=torch.ones_like(text)[None],
            past_key_values=cache,
            prefill_chunk_size=SIZE,
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )


def endless(model: Any) -> Any:
    """A model whose answers never end by themselves: every one is as long as was allowed."""
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_append_is_the_chunked_prefill_of_transformers(family: str, dtype: str) -> None:
    if dtype == "bfloat16":
        half_attention(dtype, heads=4, tokens=SIZE, features=16)
    model, text = endless(model_of(family, dtype)), text_of()
    answer = generate(model, Letters(), text, chunk_size=SIZE, max_new_tokens=NEW, keep_logits=True)
    want = by_transformers(model, text)
    assert answer.tokens == want.sequences[0, len(text) :].tolist()
    assert answer.logits is not None
    assert len(answer.logits) == NEW
    for token, (got, scores) in enumerate(zip(answer.logits, want.logits, strict=True)):
        assert torch.equal(got.float(), scores[0]), f"scores of token {token}"


@pytest.mark.parametrize("family", ["llama", "gemma3-short-window", "qwen3-moe"])
def test_a_question_is_asked_as_transformers_goes_on_with_a_cache(family: str) -> None:
    model, text = endless(model_of(family)), text_of()
    question = "who is it?"
    asked = torch.tensor(Letters()("\n\n")["input_ids"] + Letters()(question)["input_ids"])
    answer = generate(model, Letters(), text, question=question, chunk_size=SIZE, max_new_tokens=NEW, keep_logits=True)
    prefilled = by_transformers(model, text, new=1)
    want = by_transformers(model, torch.cat([text, asked]), prefilled.past_key_values)
    assert answer.logits is not None
    assert torch.equal(answer.logits.float(), torch.cat(want.logits))
    assert answer.question_tokens == len(asked)
    other = generate(model, Letters(), answer.prefill, question="where?", max_new_tokens=NEW, keep_logits=True)
    again = generate(model, Letters(), answer.prefill, question=question, max_new_tokens=NEW, keep_logits=True)
    assert again.tokens == answer.tokens
    assert torch.equal(again.logits, answer.logits)
    assert not torch.equal(other.logits, answer.logits)


@pytest.mark.parametrize("label", ["restart", "isolated", "evict(budget=12)"])
def test_another_protocol_has_other_scores(label: str) -> None:
    model, text = endless(model_of("llama")), text_of()
    one, other = (
        generate(model, Letters(), text, chunk_size=SIZE, protocol=p, max_new_tokens=2, keep_logits=True).logits
        for p in ("append", label)
    )
    assert not torch.equal(one, other)


def test_tokens_are_sampled_as_decode_samples_them() -> None:
    model, text = endless(model_of("llama")), text_of()

    def sampled(**options: Any) -> Any:
        return generate(model, Letters(), text, chunk_size=SIZE, max_new_tokens=12, keep_logits=True, **options)

    warm = sampled(temperature=2.0, seed=3)
    assert warm.tokens == sampled(temperature=2.0, seed=3).tokens
    assert warm.tokens != sampled(temperature=2.0, seed=4).tokens
    assert warm.tokens != sampled().tokens
    choose = Decode(parse("append"), 12, 2.0, 3)
    assert warm.tokens == choose.choose(warm.logits, torch.arange(36, 48)).tolist()
    greedy = sampled()
    assert greedy.tokens == greedy.logits.argmax(-1).tolist()


def test_temperature_follows_the_scores() -> None:
    """Frequencies of a first token that is drawn again and again are its probabilities."""
    scores = torch.tensor([[2.0, 1.0, 0.0, -9.0]])
    draws = 4000
    drawn = [int(Decode(parse("append"), 1, 1.5, seed).choose(scores, torch.tensor([7]))) for seed in range(draws)]
    for token, share in enumerate((scores[0] / 1.5).softmax(-1).tolist()):
        spread = (share * (1 - share) / draws) ** 0.5
        assert abs(drawn.count(token) / draws - share) <= 5 * spread


def test_an_answer_ends_where_the_model_says_so() -> None:
    model, text = endless(model_of("llama")), text_of()
    free = generate(model, Letters(), text, chunk_size=SIZE, max_new_tokens=NEW)
    assert free.stopped is Stop.LENGTH
    assert len(free.tokens) == NEW
    end = free.tokens[2]
    for said in (end, [end, 96]):
        model.generation_config.eos_token_id = said
        ended = generate(model, Letters(), text, chunk_size=SIZE, max_new_tokens=NEW)
        assert ended.tokens == free.tokens[: free.tokens.index(end) + 1]
        assert ended.stopped is Stop.END


def test_pieces_of_text_come_with_the_tokens_and_make_up_the_answer() -> None:
    class Bytes(Letters):
        """Letters of two bytes, a token each."""

        def decode(self, tokens: list[int], **options: Any) -> str:
            return bytes(0xC3 if i % 2 == 0 else 0x80 + t % 64 for i, t in enumerate(tokens)).decode(errors="replace")

    model, told = endless(model_of("llama")), list[tuple[int, str]]()
    answer = generate(
        model, Bytes(), text_of(), chunk_size=SIZE, max_new_tokens=5, on_token=lambda *given: told.append(given)
    )
    assert [token for token, _ in told] == answer.tokens
    assert [len(piece) for _, piece in told] == [0, 1, 0, 1, 1]
    assert "".join(piece for _, piece in told) == answer.text
    assert "\ufffd" not in answer.text[:-1]
    assert answer.text.endswith("\ufffd"), "bytes that nothing completes are shown at the end"


def test_scores_that_are_no_numbers_are_counted() -> None:
    model = endless(model_of("llama"))
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    answer = generate(model, Letters(), text_of(), chunk_size=SIZE, max_new_tokens=3)
    assert answer.nonfinite == 3
    assert generate(endless(model_of("llama")), Letters(), text_of(), chunk_size=SIZE, max_new_tokens=3).nonfinite == 0


def test_a_prompt_is_the_chat_template_in_pieces(chatty: Any) -> None:
    tokenizer = chatty[1]
    text, question = "Bob lives in Bergen.", "Where?"
    prompt = Prompt.of(tokenizer, True)
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{text}\n\n{question}"}], add_generation_prompt=True
    )
    assert prompt.text(text) + prompt.question(question) == list(whole["input_ids"])
    alone = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    assert prompt.text(text) + prompt.question(None) == list(alone["input_ids"])
    plain = Prompt.of(tokenizer, False)
    assert plain.text(text) == list(tokenizer(text)["input_ids"])
    assert plain.question(question) == list(tokenizer("\n\n" + question)["input_ids"])
    assert plain.question(None) == []


def test_what_looks_like_a_special_token_in_a_text_is_text(chatty: Any) -> None:
    prompt = Prompt.of(chatty[1], True)
    for tokens in (prompt.text("a</s>b")[len(prompt.text("a")) - 1 :], prompt.question("</s>")[1:-12]):
        assert 2 not in tokens
        assert {ord("<"), ord("/")} <= set(tokens)
    assert prompt.question("why")[-12] == 2, "that of the template is one"


def test_a_template_that_cannot_be_taken_apart_is_refused(tiny: Any) -> None:
    tokenizer = tiny[1]
    with pytest.raises(ConfigError, match="has none"):
        Prompt.of(tokenizer, True)
    for template in ("{{ messages[0]['content'][:1] }}", "{{ messages[0]['content'] * 2 }}"):
        fake = SimpleNamespace(chat_template=template, apply_chat_template=tokenizer.apply_chat_template)
        tokenizer.chat_template = template
        try:
            with pytest.raises(ConfigError, match="Leave the template out"):
                Prompt.of(fake, True)
        finally:
            tokenizer.chat_template = None


def test_a_chat_goes_on_with_the_same_prefill(chatty: Any) -> None:
    model, tokenizer, _ = chatty
    text = "Bob lives in Bergen, and Eve lives in Oslo. " * 2
    options: dict[str, Any] = {"max_new_tokens": 3, "keep_logits": True}
    first = drift.generate(model, tokenizer, text, question="Where is Bob?", chunk_size=SIZE, **options)
    second = drift.generate(model, tokenizer, first.prefill, question="Where is Eve?", **options)
    anew = drift.generate(model, tokenizer, text, question="Where is Eve?", chunk_size=SIZE, **options)
    assert torch.equal(second.logits, anew.logits)
    assert not torch.equal(second.logits, first.logits)
    plain = drift.generate(model, tokenizer, text, question="Where is Eve?", chunk_size=SIZE, chat=False, **options)
    assert plain.question_tokens < anew.question_tokens
    ids = drift.generate(model, tokenizer, plain.prefill.tokens, question="Where is Eve?", chunk_size=SIZE, **options)
    assert torch.equal(ids.logits, plain.logits), "tokens are taken as they are, and no template is put behind them"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"text": ""}, "The text is empty"),
        ({"question": " \n"}, "The question is empty"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"protocol": "appendix"}, "Unknown protocol 'appendix'"),
        ({"protocol": "one_step(append)"}, "only a pass beside it has"),
        ({"chat": True}, "has none"),
        (
            {"text": "a" * 200, "question": "b" * 20, "max_new_tokens": 40},
            r"Text \(200 tokens\), question \(21\) and answer \(up to 40\) reach position 260, beyond the model's "
            "context of 256",
        ),
        ({"text": "a" * 300}, "context of 256"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_computed(
    tiny: Any, options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Folded, "extend", lambda *_: pytest.fail("a chunk was computed"))
    given = {"text": "Some text.", **options}
    with pytest.raises(ConfigError, match=said):
        drift.generate(tiny[0], tiny[1], given.pop("text"), **given)


def test_what_was_folded_keeps_its_protocol_and_its_context(tiny: Any) -> None:
    model, tokenizer, _ = tiny
    first = drift.generate(model, tokenizer, "a" * 200, chunk_size=64, max_new_tokens=2)
    with pytest.raises(ConfigError, match="folded already"):
        drift.generate(model, tokenizer, first.prefill, protocol="restart")
    with pytest.raises(ConfigError, match="reach position 261"):
        drift.generate(model, tokenizer, first.prefill, question="b" * 60, max_new_tokens=1)
    far = drift.generate(model, tokenizer, first.prefill, question="b" * 60, allow_beyond_context=True)
    assert far.folded.position > 256
    within = drift.generate(
        model, tokenizer, "a" * 400, chunk_size=64, protocol="streaming(sinks=2,window=62,positions=cache)",
        allow_beyond_context=False,
    )  # fmt: skip
    assert within.folded.position == 64


# ---------------------------------------------------------------------------------------------- command line
def run(folder: Path, text: Path | str, *more: str) -> int:
    """The command, on a tiny model; returns the exit code."""
    return main(
        ["--model", str(folder), "--prompt-file", str(text), "--dtype", "fp32", "--device", "cpu", "--chunk-size", "16",
         "--max-new-tokens", "5", *more]
    )  # fmt: skip


def test_the_command_says_the_answer_and_what_it_cost(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = text_file(tmp_path / "book.txt", 100)
    assert run(tiny[2], text, "--question", "Who?") == 0
    told = capsys.readouterr()
    want = drift.generate(tiny[0], tiny[1], text.read_text(), question="Who?", chunk_size=16, max_new_tokens=5)
    assert told.out == want.text + "\n"
    tokens = want.prefill.text_tokens
    assert f"chunk {-(-tokens // 16)} of {-(-tokens // 16)}, {tokens} tokens" in told.err
    assert f"folded {tokens} tokens in {-(-tokens // 16)} chunks" in told.err
    assert "question of 5 tokens" in told.err
    assert f"answer of {len(want.tokens)} tokens" in told.err
    assert "peak memory of the process" in told.err


def test_the_command_as_json(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = text_file(tmp_path / "book.txt", 100)
    assert run(tiny[2], text, "--json", "--protocol", "streaming(sinks=2,window=30)", "--weights", "streamed") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["protocol"] == "streaming(sinks=2,window=30,positions=cache)"
    assert told["chunk_size"] == 16
    assert told["stopped"] in ("end", "length")
    assert told["model"]["weights_kept"] == "streamed"
    assert told["cache_bytes"] == 2 * 2 * 2 * 8 * 4 * 32
    assert {"fold_seconds", "question_seconds", "answer_seconds", "peak_bytes", "text_tokens", "numerics"} <= set(told)


def test_the_command_samples_with_a_seed(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, told = text_file(tmp_path / "book.txt", 100), []
    for seed in ("1", "1", "2"):
        assert run(tiny[2], text, "--temperature", "5", "--seed", seed) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] != told[2]


def test_the_command_reads_standard_input(
    tiny: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"some text of mine")))
    assert run(tiny[2], "-") == 0
    assert "folded 17 tokens in 2 chunks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "more", "said"),
    [
        (None, [], "there is no such file"),
        (b"", [], "is empty"),
        (b" \n", [], "is empty"),
        (b"\xff\xfe\x00", [], "is not UTF-8 text"),
        (b"text", ["--chunk-size", "0"], "--chunk-size 0: it must be at least 1"),
        (b"text", ["--protocol", "appendix"], "Did you mean 'append'"),
        (b"text", ["--protocol", "decode(append)"], "name the protocol whose cache is generated from"),
        (b"text", ["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (b"text", ["--temperature", "-1"], "temperature is -1.0"),
        (b"text", ["--question", ""], "The question is empty"),
        (b"text", ["--model", "no-such-model"], "no-such-model"),
        (b"a" * 300, [], "beyond the model's context of 256"),
        (b"text", ["--device", "cuda:77"], "no CUDA device"),
    ],
)
def test_errors_of_the_command_are_for_people(
    tiny: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    more: list[str],
    said: str,
) -> None:
    if "cuda:77" in more and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    text = tmp_path / "book.txt"
    if content is not None:
        text.write_bytes(content)
    assert run(tiny[2], text, *more) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert "Traceback" not in told.err
    assert told.out == ""


class Terminal(io.StringIO):
    """Where a person looks on."""

    def isatty(self) -> bool:
        return True


def test_progress_stays_in_one_line_of_a_terminal(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(generate_door, "_SECONDS_BETWEEN_LOOKS", 0.0)
    assert run(tiny[2], text_file(tmp_path / "book.txt", 100)) == 0
    lines = screen.getvalue().split("\n")
    shown = next(line for line in lines if "chunk 1 of 7" in line)
    assert [part.split(",")[0] for part in shown.split("\r")[1:]] == [f"chunk {n} of 7" for n in range(1, 8)]
    assert "\\x" not in screen.getvalue(), "a control character that a terminal was not given"
    assert lines[lines.index(shown) + 1].startswith("folded 101 tokens"), "the line was not left"


def test_a_device_without_memory_is_an_error_for_people(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore of it")

    monkeypatch.setattr(Folded, "extend", full)
    assert run(tiny[2], text_file(tmp_path / "book.txt", 100)) == 2
    told = capsys.readouterr().err
    assert "ran out of memory (CUDA out of memory. Tried to allocate 9 GiB.)" in told
    assert "--weights streamed" in told


@pytest.mark.parametrize(
    ("free", "more", "kept"),
    [
        (10**7, [], "resident"),
        (None, [], "resident"),
        (10**6, [], "streamed"),
        (10**5, [], ""),
        (10**5, ["--weights", "streamed"], "streamed"),
        (10**5, ["--weights", "resident"], "resident"),
    ],
)
def test_weights_that_do_not_fit_are_streamed(
    tiny: Any, tmp_path: Path, free: int | None, more: list[str], kept: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(memory, "free", lambda device: free)
    monkeypatch.setattr(sizing.Needs, "of", lambda *_: sizing.Needs(5e6, 4e5, 1e5))
    assert run(tiny[2], text_file(tmp_path / "book.txt", 100), *more) == (0 if kept else 2)
    told = capsys.readouterr().err
    assert (f"weights {kept}" if kept else "GB are free. Shorten the text") in told


def test_a_folder_is_no_text(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tiny[2], tmp_path) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_every_refused_protocol_is_refused_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = text_file(tmp_path / "book.txt", 100)
    for label in REFUSED:
        assert run(tmp_path / "not-there", text, "--protocol", label) == 2
        assert "not-there" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_trained_model_finds_what_the_text_says(smollm2: str) -> None:
    model, tokenizer = load_model(smollm2, "fp32")
    fill = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
    text = (fill * 4 + "The name of the captain's cat is Pamplemousse.\n" + fill * 4).rstrip()
    question = "What is the name of the captain's cat?"
    told = list[str]()
    found = drift.generate(
        model, tokenizer, text, question=question, chunk_size=64, max_new_tokens=16,
        on_token=lambda token, piece: told.append(piece),
    )  # fmt: skip
    assert "Pamplemousse" in found.text
    assert "".join(told) == found.text
    assert found.stopped is Stop.END
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{text}\n\n{question}"}], add_generation_prompt=True
    )
    # Tokens may be others where text and question meet; what they spell is not.
    asked = found.folded.tokens[: found.prefill.text_tokens + found.question_tokens]
    assert tokenizer.decode(asked) == tokenizer.decode(prompt["input_ids"])
    lost = drift.generate(model, tokenizer, fill * 8, question=question, chunk_size=64, max_new_tokens=16)
    assert "Pamplemousse" not in lost.text
    dropped = drift.generate(
        model, tokenizer, text, question=question, chunk_size=64, max_new_tokens=16, protocol="streaming(window=64)"
    )
    assert "Pamplemousse" not in dropped.text, "the needle has left the window"

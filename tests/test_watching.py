"""What a model computes inside loops of others is noted bit for bit: generate, continuous batching, own loops."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from conftest import make_model
from diagnose_tools import lane, random_model, text
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import DynamicCache, GenerationConfig, StaticCache
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from drift.errors import ConfigError, UnsupportedModelError
from drift.reading.diagnose.model import Verdict
from drift.reading.diagnose.tensors import open_dump
from drift.reading.diagnose.verdict import diagnose
from drift.running.watching import watch

pytestmark = pytest.mark.numerical


def read(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "lane.safetensors")


@pytest.mark.parametrize("kind", ["none", "dynamic", "static"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_loop_of_one_s_own(tmp_path: Path, family: str, kind: str) -> None:
    model, ids = random_model(family), text(40)
    size = 40 if kind == "none" else 8
    caches: dict[str, Any] = {
        "none": lambda: None,
        "dynamic": lambda: DynamicCache(config=model.config),
        "static": lambda: StaticCache(config=model.config, max_cache_len=64),
    }
    cache = caches[kind]()
    with watch(model, tmp_path / "out"), torch.no_grad():
        for part in ids.split(size):
            model(part[None], past_key_values=cache)
    got, want = read(tmp_path / "out"), lane(model, ids, size)
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        if kind == "static" and name.startswith("step.") and not torch.equal(got[name], tensor[0]):
            torch.testing.assert_close(got[name], tensor[0])  # masks of another length: other kernels
        else:
            assert torch.equal(got[name], tensor[0]), name
    assert not model._forward_hooks and not model._forward_pre_hooks
    assert cache is None or "update" not in vars(cache)


def generated(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.generate(ids[None], max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0, **options)[0]


def test_generate_counts_a_step_per_call(tmp_path: Path) -> None:
    model, ids = random_model("llama"), text(20)
    want = generated(model, ids)
    with watch(model, tmp_path / "out"):
        assert torch.equal(generated(model, ids), want)
    dump = open_dump(tmp_path / "out")
    assert dump.boundaries == [0, 20, 21, 22, 23]
    # The last token is not computed any more.
    plain = lane(model, want[:-1], [20, 1, 1, 1])
    got = read(tmp_path / "out")
    assert got.keys() == plain.keys()
    for name, tensor in plain.items():
        rows = tensor[0][..., -got[name].shape[-2] :, :]
        if name == "step.0.logits":  # generate wants one row of them: a product of another shape
            torch.testing.assert_close(got[name], rows)
        else:
            assert torch.equal(got[name], rows), name
    with watch(model, tmp_path / "chunked", logits="none"):
        generated(model, ids, prefill_chunk_size=8)
    chunked = open_dump(tmp_path / "chunked")
    assert chunked.boundaries == [0, 8, 16, 20, 21, 22, 23]
    found = diagnose(dump, chunked)
    assert found.verdict in (Verdict.SAME, Verdict.ROUNDING)
    assert found.roundoff.known


def test_sequences_of_a_continuous_batch_are_lanes_of_their_own(tmp_path: Path) -> None:
    model = random_model("llama")
    model.generation_config = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0)
    texts = [text(n, seed) for seed, n in enumerate((20, 5, 13))]
    batching = ContinuousBatchingConfig(page_size=16, num_blocks=32, max_batch_tokens=24, allow_block_sharing=False)
    with watch(model, tmp_path / "out"):
        found = model.generate_batch([t.tolist() for t in texts], continuous_batching_config=batching, warmup=False)
    assert len(found) == len(texts)
    for name, output in found.items():
        ids = torch.tensor([*output.prompt_ids, *output.generated_tokens])[:-1]
        dump = open_dump(tmp_path / "out" / name)
        assert dump.tokens == len(ids)
        (path,) = (tmp_path / "out" / name).iterdir()
        with safe_open(path, "np") as file:
            assert file.metadata()["experts"] == "0"
        alone = diagnose_lane(model, ids, tmp_path / f"alone {name}")
        verdict = diagnose(alone, dump)
        assert verdict.verdict in (Verdict.SAME, Verdict.ROUNDING), name
        assert not any("metadata" in note for note in verdict.notes)
        wrong = diagnose_lane(model, ids.roll(1), tmp_path / f"wrong {name}")
        assert diagnose(wrong, dump).verdict is Verdict.STRUCTURAL


def diagnose_lane(model: Any, ids: torch.Tensor, folder: Path) -> Any:
    with watch(model, folder), torch.no_grad():
        model(ids[None], past_key_values=DynamicCache(config=model.config))
    return open_dump(folder)


def test_refusals_leave_nothing_behind(tmp_path: Path) -> None:
    model, ids = make_model("llama"), text(12)
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="batch of 2"), watch(model, out):
        model(torch.stack([ids, ids]))
    with pytest.raises(ConfigError, match="was not called"), watch(model, out):
        pass
    with pytest.raises(ConfigError, match="without a cache"), watch(model, out):
        model(ids[None], use_cache=False)
    with pytest.raises(ConfigError, match="at position 0, and 12 tokens"), watch(model, out):
        model(ids[None])
        model(ids[None])
    with pytest.raises(ConfigError, match="logits is"), watch(model, out, logits="some"):
        pass
    with pytest.raises(ZeroDivisionError), watch(model, out):
        model(ids[None])
        raise ZeroDivisionError
    assert not out.exists()
    assert not model._forward_hooks


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("gemma3n_text", r"layer 0 hands on \(4, 1, 12, 32\) for 12 tokens"),
        ("longcat_flash", "more than once in a block"),
    ],
)
def test_models_whose_blocks_hand_on_other_things_are_not_followed(tmp_path: Path, key: str, said: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = architectures.build(key)
    with pytest.raises(UnsupportedModelError, match=said), watch(model, tmp_path / "dump"):
        model(text(12)[None])
    assert not (tmp_path / "dump").exists()

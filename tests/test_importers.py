"""Dumps by other programs: the numbers that were written, where they belong; what has no place is listed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from diagnose_numbers import CHUNK, TOKENS
from diagnose_tools import save
from importers_tools import (
    BLOCKS,
    FORMATS,
    HEADS,
    Written,
    edge_llm,
    lane,
    msprobe,
    sglang,
    torch_save,
    transformerlens,
    vllm,
)
from safetensors.torch import load_file, save_file

from drift.dataset.dumps import FORMS
from drift.diagnose import main
from drift.errors import DatasetError
from drift.reading.diagnose.importers import IMPORTERS
from drift.reading.diagnose.tensors import Dump, Place, open_dump


def test_the_command_line_knows_every_importer() -> None:
    assert set(FORMS) == {one.name for one in IMPORTERS}
    assert set(FORMS) == {"drift", *(one.name for one in FORMATS)}


def place_of(name: str) -> Place:
    parts = name.split(".")
    return Place(parts[-1], int(parts[1]) if len(parts) > 1 else 0)


def opened(form: Written, folder: Path) -> tuple[Dump, Path]:
    path = form.write(lane(), folder / form.write.__name__)
    layers = range(BLOCKS + 1) if form.name == "vllm" else ()
    return open_dump(path, HEADS if "--heads" in form.flags else None, layers=layers), path


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.write.__name__)
def test_what_was_written_is_read_where_it_belongs(
    form: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = open_dump(save(lane(), tmp_path / "truth"))
    found, path = opened(form, tmp_path)
    assert found.tokens == TOKENS
    assert found.boundaries == ([0, TOKENS] if form.whole else list(range(0, TOKENS + 1, CHUNK)))
    assert set(found.places) == {place_of(name) for name in form.holds}
    for place in found.places:
        if place.kind.startswith("cache"):
            assert np.array_equal(found.cache(place, 2), truth.cache(place, 2))
        else:
            for start, stop in found.covered(place, 0, TOKENS):
                assert np.array_equal(found.read(place, start, stop), truth.read(place, start, stop)), place
    hidden = [place for place in found.places if place.kind != "logits" and not place.kind.startswith("cache")]
    assert all(found.covered(place, 0, TOKENS) == [(0, TOKENS)] for place in hidden)
    for asked in ((), ("--from", f"drift,{form.name}")):
        # What one lane alone holds is no fault of the other's.
        assert main([str(tmp_path / "truth"), str(path), *form.flags, *asked]) == 0
        assert "B was read as" in " ".join(capsys.readouterr().out.split())


def test_what_has_no_place_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sglang(lane(), tmp_path / "a")
    assert main([str(path), str(path), "--heads", "2"]) == 0
    said = capsys.readouterr().out
    for part in ("model.layers.N.mlp.output (12)", "A was read as a dump of SGLang. Of 2 ranks rank 0 was read."):
        assert part in " ".join(said.split())


def test_keys_before_rotation_are_not_taken_for_keys(tmp_path: Path) -> None:
    for form in FORMATS:
        if form.name in ("transformers", "nnsight"):
            found, _ = opened(form, tmp_path)
            assert any("k_proj" in name for name in found.ignored)
            assert Place("key", 1) not in found.places
    found = open_dump(transformerlens(lane(), tmp_path / "lens"))
    assert "blocks.0.attn.hook_k" in found.ignored


def test_keys_are_not_rotated_where_positions_are_added(tmp_path: Path) -> None:
    tmp_path.joinpath("a").mkdir()
    names = {"hook_pos_embed": (1, 4, 8), "blocks.0.hook_resid_post": (1, 4, 8), "blocks.0.attn.hook_k": (1, 4, 2, 4)}
    np.savez(tmp_path / "a" / "a.npz", **{name: np.ones(shape, np.float32) for name, shape in names.items()})
    assert open_dump(tmp_path / "a").shape(Place("key", 1)) == (2, 4)


def test_flat_keys_ask_for_heads_and_do_not_stop_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = msprobe(lane(), tmp_path / "a")
    assert {place.kind for place in open_dump(path).places} == {"hidden", "final", "logits"}
    assert main([str(path), str(path)]) == 0
    assert "--heads N" in " ".join(capsys.readouterr().out.split())


def test_pairs_are_added_as_the_engine_would_in_its_own_format(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    one, two = (torch.randn(4, 32, generator=draw).bfloat16() for _ in range(2))
    data = tmp_path / "rank0" / "dump_tensor_data"
    for at, tensor in enumerate((one, two)):
        torch_save(tensor, data / f"Module.model.layers.0.Block.forward.0.output.{at}.pt")
    found = open_dump(tmp_path)
    assert np.array_equal(found.read(Place("hidden", 1), 0, 4), (one + two).float().numpy())
    assert found.dtypes(Place("hidden", 1)) == {"BF16"}


def test_names_of_our_own_are_read_from_sglangs_dumper(tmp_path: Path) -> None:
    for name in ("layer.1.hidden", "block.1.key"):
        value = torch.ones((4, 8) if name.startswith("layer") else (2, 4, 8))
        torch_save({"value": value}, tmp_path / f"forward_pass_id=0___rank=0___name={name}___dump_index=1.pt")
    assert set(open_dump(tmp_path).places) == {Place("hidden", 1), Place("key", 1)}


def test_a_golden_of_edge_llm_is_read_as_its_dump(tmp_path: Path) -> None:
    """Keys and values apart, as long as they are filled, logits [sequence, 1, token]."""
    edge = load_file(edge_llm(lane(), tmp_path / "a") / "edgellm_dump.safetensors")
    golden = {}
    for name, tensor in edge.items():
        length = CHUNK * (int(name.split(".")[0].removeprefix("round_")) + 1)
        if name.endswith(".kv"):
            for at, kind in enumerate(("key", "value")):
                golden[name.replace("kv", kind)] = tensor[:, at, :, :length].contiguous()
        elif name.endswith("logits"):
            golden[name] = tensor[:, None].contiguous()
    save_file(golden, tmp_path / "golden.safetensors")
    assert main([str(tmp_path / "golden.safetensors"), str(tmp_path / "a")]) == 0


# ---------------------------------------------------------------- what is refused, and how
def refusal(path: Path, **options: object) -> str:
    with pytest.raises(DatasetError) as caught:
        open_dump(path, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_vllm_needs_its_layers(tmp_path: Path) -> None:
    path = vllm(lane(), tmp_path / "a")
    assert "hidden states of 3 layers, and no file says which" in refusal(path)
    assert "--layers 1,2,3" in refusal(path, layers=(1, 2))
    assert "2 were named" in refusal(path, layers=(1, 2))
    assert "3 were named" in refusal(path, layers=(1, 1, 2))
    found = open_dump(path, layers=(4, 8, 12))
    assert set(found.places) == {Place("hidden", 4), Place("hidden", 8), Place("hidden", 12)}
    save_file({"hidden_states": torch.ones(2, 3, 4), "token_ids": torch.ones(2)}, path / "other.safetensors")
    assert "holds 2 files of tensors; vLLM writes one per request" in refusal(path, layers=(1, 2, 3))


def test_vllms_tokens_are_held_against_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = vllm(lane(), tmp_path / "a"), vllm(lane(), tmp_path / "b")
    held = load_file(two / "request.safetensors")
    assert open_dump(one, layers=(0, 1, 2)).metadata == {
        "tokens_sha256": hashlib.sha256(np.arange(TOKENS, dtype="<i8").tobytes()).hexdigest()
    }
    save_file(held | {"token_ids": held["token_ids"].flip(0)}, two / "request.safetensors")
    main([str(one), str(two), "--layers", "1,2,3"])
    assert "made from other tokens" in " ".join(capsys.readouterr().out.split())


def test_gaps_between_steps_are_refused(tmp_path: Path) -> None:
    path = sglang(lane(), tmp_path / "sglang")
    for file in path.glob("step=5___*"):
        file.unlink()
    assert "there is a step 4 and a later one, but no step 5" in refusal(path)
    path = transformerlens(lane(), tmp_path / "lens")
    (path / "1.npz").unlink()
    assert "no step 1" in refusal(path)
    (path / "2.npz").rename(path / "x.npz")
    assert "'x.npz' is one of 5 and has no number" in refusal(path)
    (path / "x.npz").rename(path / "03.npz")
    assert "the same number" in refusal(path)


def test_a_module_twice_in_one_step_is_refused(tmp_path: Path) -> None:
    path = sglang(lane(), tmp_path / "a")
    first = next(path.glob("step=3___rank=0___*layers.0.output.0___*"))
    first.rename(first.with_name(first.name.replace("step=3", "step=4")))
    assert "is there twice in one step" in refusal(path)


def test_dumps_without_tensors_say_what_writes_them(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.mkdir()
    (trace / "LlamaForCausalLM_debug_tree_FULL_TENSORS.json").write_text("{}")
    assert "use_repr=False" in refusal(trace)
    statistics = tmp_path / "statistics" / "step0" / "rank0"
    statistics.mkdir(parents=True)
    for name in ("dump.json", "construct.json"):
        (statistics / name).write_text("{}")
    assert '"task": "tensor"' in refusal(tmp_path / "statistics")
    for name in FORMS:
        assert statistics.name in refusal(statistics, form=name), name
    with pytest.raises(SystemExit):
        main([str(trace), str(trace), "--from", "nothing"])
    for wrong in ("", "1,", "a", "1" * 30):
        with pytest.raises(SystemExit):
            main([str(trace), str(trace), "--layers", wrong])
    assert "is no format of dumps" in refusal(trace, form="nothing")


def test_batches_are_refused(tmp_path: Path) -> None:
    path = edge_llm(lane(), tmp_path / "a")
    held = {name: torch.cat([x, x]) for name, x in load_file(path / "edgellm_dump.safetensors").items()}
    save_file(held, path / "edgellm_dump.safetensors")
    assert "2 sequences. Dump one at a time" in refusal(path)


def test_weights_are_no_dump(tmp_path: Path) -> None:
    weights = {"model.layers.0.self_attn.v_proj.weight": torch.ones(4, 4), "model.norm.weight": torch.ones(4)}
    save_file(weights, tmp_path / "model.safetensors")
    assert "no tensor is named as expected" in refusal(tmp_path)


def test_several_requests_or_runs_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        sglang(lane(), tmp_path / "a" / name)
    assert "several dumps: name the folder of one" in refusal(tmp_path / "a")

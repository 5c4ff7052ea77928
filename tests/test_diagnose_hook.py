"""The hook of docs/diagnose.md as it stands there, on an engine whose blocks return pairs and write in place."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import drift
from drift.reading.diagnose.model import Diagnosis, Verdict
from drift.reading.diagnose.tensors import open_dump
from drift.reading.diagnose.verdict import diagnose

PAGE = (Path(drift.__file__).parents[1] / "docs" / "diagnose.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("### From your own engine")[2].partition("###")[0]
HOOK, LOOP = re.findall(r"```python\n(.*?)```", SECTION, flags=re.DOTALL)
WIDTH, TOKENS, CHUNK = 32, 48, 8


class Norm(nn.Module):
    """RMS norm. Given a residual, it adds to it and writes in place, as fused kernels do."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        if residual is None:
            return x / x.square().mean(-1, keepdim=True).sqrt()
        residual.add_(x)
        x.copy_(self(residual))
        return x, residual


class Block(nn.Module):
    """Attention over what came before, and a linear map, as vLLM lays out its decoder layers."""

    def __init__(self, number: int, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(number)
        for name in ("q", "k", "v", "out", "mlp"):
            setattr(self, name, torch.randn((WIDTH, WIDTH), generator=generator) / WIDTH**0.5)
        self.number, self.scale, self.norm = number, scale, Norm()
        self.keys, self.values = torch.zeros(0, WIDTH), torch.zeros(0, WIDTH)
        self.append: Callable[[int, torch.Tensor, torch.Tensor], None] = lambda *x: None

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        keys, values = x @ self.k, x @ self.v
        self.append(self.number, keys[None], values[None])
        first = len(self.keys)
        self.keys, self.values = torch.cat([self.keys, keys]), torch.cat([self.values, values])
        scores = self.scale * (x @ self.q) @ self.keys.T / WIDTH**0.5
        hidden = torch.arange(len(self.keys))[None] > first + torch.arange(len(x))[:, None]
        return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ self.values @ self.out

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            residual, x = x, self.norm(x)  # the embeddings themselves: what is added later is added to them
        else:
            x, residual = self.norm(x, residual)
        x, residual = self.norm(self.attend(x), residual)
        return x @ self.mlp, residual


class Engine(nn.Module):
    """Three such blocks; `plain` computes the same out of place and hands on sums."""

    def __init__(self, plain: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(97, WIDTH)
        nn.init.normal_(self.embed_tokens.weight, generator=torch.Generator().manual_seed(9))
        self.layers = nn.ModuleList(Plain(i, scale) if plain else Block(i, scale) for i in range(3))
        self.plain = plain

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, residual = self.embed_tokens(ids), None
        for layer in self.layers:
            x, residual = (layer(x), None) if self.plain else layer(x, residual)
        return x if residual is None else x + residual


class Plain(Block):
    """The same block, out of place, with one tensor handed on."""

    def forward(self, x: torch.Tensor, residual: None = None) -> torch.Tensor:  # type: ignore[override]
        x = x + self.attend(self.norm(x))
        return x + self.norm(x) @ self.mlp


def dumped(folder: Path, engine: Engine, chunk: int, hook: str = HOOK, loop: str = LOOP, inside: bool = False) -> Any:
    """Run the page's code, at the top of a module or inside a function, and open what it wrote."""
    folder.mkdir()
    loop = loop.replace("chunked/lane", f"{folder}/not/there/lane").replace('dtype="bfloat16"', "dtype='float32'")
    # Where the engine appends to its cache, somebody has to say so.
    loop = loop.replace("for step,", "for block in model.layers:\n    block.append = lane.append_to_cache\nfor step,")
    code = f"{hook}\n{loop}"
    ids = torch.randint(97, (TOKENS,), generator=torch.Generator().manual_seed(0))
    names: dict[str, Any] = {"model": engine, "chunks": ids.split(chunk)}
    if inside:
        code = f"def main(model, chunks):\n{textwrap.indent(code, '    ')}\nmain(model, chunks)"
    with torch.no_grad():
        exec(compile(code, "docs/diagnose.md", "exec"), names)
    return open_dump(folder / "not" / "there")


def judged(folder: Path, **options: Any) -> Diagnosis:
    return diagnose(dumped(folder / "a", Engine(plain=True), TOKENS), dumped(folder / "b", Engine(), CHUNK, **options))


@pytest.mark.parametrize("inside", [False, True])
def test_the_hook_takes_pairs_that_are_written_in_place(tmp_path: Path, inside: bool) -> None:
    found = judged(tmp_path, inside=inside)
    assert found.verdict in (Verdict.ROUNDING, Verdict.SAME)
    assert found.missing == []
    assert found.comparison.b.steps == TOKENS // CHUNK
    assert len(found.comparison.profiles) == 10
    assert found.roundoff.known


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("return first + second if pair else first", "return first"), ('.to("cpu", copy=True)', '.to("cpu")')],
)
def test_without_what_the_page_says_a_clean_run_is_accused(tmp_path: Path, right: str, wrong: str) -> None:
    assert right in HOOK
    assert judged(tmp_path, hook=HOOK.replace(right, wrong)).verdict is Verdict.STRUCTURAL


def test_a_bug_in_such_an_engine_is_found(tmp_path: Path) -> None:
    a = dumped(tmp_path / "a", Engine(plain=True), TOKENS)
    found = diagnose(a, dumped(tmp_path / "b", Engine(scale=1.1), CHUNK))
    assert found.verdict is Verdict.STRUCTURAL
    assert found.entry is not None
    assert (found.entry.place.kind, found.entry.place.block) == ("hidden", 1)

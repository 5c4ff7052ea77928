"""Files of tensors of other programs: numbers where they lie, and nothing that a file can make happen."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drift._bounds import MOST_PICKLE_BYTES
from drift._outside import OutsideError
from drift.errors import DatasetError
from drift.reading.diagnose.containers import pickles, tensors_in
from drift.reading.diagnose.containers.pickles import Made, Name, said
from drift.reading.diagnose.stored import Stored

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


def numbers(stored: Stored) -> np.ndarray:
    return stored.rows(np.memmap(stored.path, np.uint8, "r"), 0, stored.tokens)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torchs_files_are_read_as_torch_reads_them(dtype: torch.dtype, tmp_path: Path) -> None:
    whole = torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    views = {"whole": whole, "rows": whole[2:4], "turned": whole.transpose(0, 1), "columns": whole[..., 1:5:2]}
    torch.save({"a": views, "b": [whole[0]], "c": (whole[1], "text", None, 2.5, 2**70)}, tmp_path / "a.pt")
    held = tensors_in(tmp_path / "a.pt").tensors
    read = torch.load(tmp_path / "a.pt", weights_only=True)
    expected = {f"a.{name}": tensor for name, tensor in read["a"].items()} | {"b[0]": read["b"][0], "c.0": read["c"][0]}
    assert set(held) == set(expected)
    for name, tensor in expected.items():
        assert held[name].dtype == DTYPES[dtype]
        assert held[name].shape == tuple(tensor.shape)
        assert np.array_equal(numbers(held[name]), tensor.to(torch.float64).numpy()), name


def test_parameters_ordered_dictionaries_and_a_lone_tensor(tmp_path: Path) -> None:
    shared = torch.ones(2, 3)
    made = collections.OrderedDict(a=torch.nn.Parameter(shared), b=shared, c=shared)
    torch.save(made, tmp_path / "a.pt")
    assert list(tensors_in(tmp_path / "a.pt").tensors) == ["a", "b", "c"]
    torch.save(shared, tmp_path / "b.pt")
    assert list(tensors_in(tmp_path / "b.pt").tensors) == [""]
    torch.save({"n": 1}, tmp_path / "c.pt")
    assert tensors_in(tmp_path / "c.pt").tensors == {}


class Evil:
    """What a pickle can do where it is run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def test_a_pickle_is_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"evil": Evil(), "good": torch.ones(1, 2)}, "a.pt")
    assert list(tensors_in(Path("a.pt")).tensors) == ["good"]
    assert not Path("ran").exists()
    found = said(pickle.dumps(Evil(), protocol=2))
    assert isinstance(found, Made)
    assert found.by == Name("posix mkdir")
    torch.load("a.pt", weights_only=False)  # the file is one that does it
    assert Path("ran").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_those_that_were_written(protocol: int) -> None:
    value = {"a": [1, -2, 3.5, None, True, False, "é", 2**80], "b": {"c": (1, (2, 3), (), (1, 2, 3, 4, 5))}, 4: []}
    assert said(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize(
    "raw",
    [b"", b".", b"\x80\x02", b"t.", b"\x85.", b"a.", b"s.", b"R.", b"b.", b"h\x05.", b"u.", b"0.", b"2.", b"1.", b"Q.",
     b"}K\x01s.", b"cos\nsystem\n(S'x'\no.", b"(i__main__\nX\n.", b"\x82\x01.", b"Px\n.", b"L" + b"9" * 5000 + b"L\n.",
     b"]X\x01\x00\x00\x00a\x93.", b"\x8e" + b"\xff" * 8, b"X\xff\xff\xff\x7fa", b"\xff"],
)  # fmt: skip
def test_what_is_no_pickle_of_tensors_is_refused(raw: bytes) -> None:
    with pytest.raises(OutsideError):
        said(raw)


def test_pickles_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutsideError, match="at most"):
        said(bytes(MOST_PICKLE_BYTES + 1))
    monkeypatch.setattr(pickles, "MOST_PICKLE_CODES", 100)
    with pytest.raises(OutsideError, match="instructions"):
        said(b"N0" * 50 + b"N.")
    # A memo is a table by numbers, not one as long as the largest of them.
    assert said(b"Nr\xff\xff\xff\xff0j\xff\xff\xff\xff.") is None


def doubled(depth: int) -> bytes:
    """Lists that hold the one below twice: two to the depth of them, if they were followed."""
    return b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (n + 1, n, n) for n in range(depth))


def test_lists_that_hold_each_other_end(tmp_path: Path) -> None:
    deep = b"]" * 9000 + b"a" * 8999
    for name, raw in {"doubled": doubled(50), "itself": b"]q\x00h\x00a", "deep": deep}.items():
        with zipfile.ZipFile(tmp_path / f"{name}.pt", "w") as archive:
            archive.writestr("x/data.pkl", raw + b".")
        assert tensors_in(tmp_path / f"{name}.pt").tensors == {}


def rewritten(path: Path, change: Any, compression: int = zipfile.ZIP_STORED) -> Path:
    """An archive with its members changed."""
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, payload in change(held).items():
            archive.writestr(name, payload)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        tensors_in(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_torchs_files_that_lie_are_refused(tmp_path: Path) -> None:
    def saved() -> Path:
        torch.save({"a": torch.ones(8, 9)}, tmp_path / "a.pt")
        return tmp_path / "a.pt"

    def short(held: dict[str, bytes]) -> dict[str, bytes]:
        return {name: payload[:16] if "/data/" in name else payload for name, payload in held.items()}

    assert "more numbers than its storage" in refusal(rewritten(saved(), short))
    assert "are not in it" in refusal(
        rewritten(saved(), lambda held: {n: p for n, p in held.items() if "/data/" not in n})
    )
    turned = rewritten(saved(), lambda held: {n: b"big" if n.endswith("byteorder") else p for n, p in held.items()})
    assert "last byte first" in refusal(turned)
    assert "compressed" in refusal(rewritten(saved(), lambda held: held, zipfile.ZIP_DEFLATED))
    payload = saved().read_bytes()
    (tmp_path / "a.pt").write_bytes(payload[: len(payload) // 2])
    assert "damaged" in refusal(tmp_path / "a.pt")


def test_arrays_of_numpy(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).standard_normal((4, 6))
    np.savez(tmp_path / "a.npz", plain=drawn, turned=drawn.T, half=drawn.astype("f2"), whole=np.arange(3))
    held = tensors_in(tmp_path / "a.npz").tensors
    assert {name: one.dtype for name, one in held.items()} == {
        "plain": "F64",
        "turned": "F64",
        "half": "F16",
        "whole": "I64",
    }
    assert np.array_equal(numbers(held["plain"]), drawn)
    assert np.array_equal(numbers(held["turned"]), drawn.T)
    np.save(tmp_path / "a.npy", drawn.astype("f4"))
    assert np.array_equal(numbers(tensors_in(tmp_path / "a.npy").tensors[""]), drawn.astype("f4"))
    np.savez_compressed(tmp_path / "b.npz", drawn)
    assert "save it with numpy.savez" in refusal(tmp_path / "b.npz")
    np.save(tmp_path / "b.npy", drawn.astype(">f8"))
    assert "last byte first" in refusal(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.zeros(3, "V2"))
    assert "NumPy has no bf16" in refusal(tmp_path / "c.npy")
    np.save(tmp_path / "d.npy", drawn)
    (tmp_path / "d.npy").write_bytes((tmp_path / "d.npy").read_bytes()[:-8])
    assert "bytes are there" in refusal(tmp_path / "d.npy")


def test_a_table_of_contents_is_no_longer_than_it_may_be(tmp_path: Path) -> None:
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 1 << 30, 0, 0)
    with (tmp_path / "a.npz").open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(1 << 30)
        file.seek(0, io.SEEK_END)
        file.write(end)
    assert "table of contents" in refusal(tmp_path / "a.npz")


def test_what_is_no_file_of_tensors(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")  # torch before 1.6
    assert "is no safetensors file" in refusal(tmp_path / "a.pt")
    os.mkfifo(tmp_path / "pipe")
    assert "cannot be read" in refusal(tmp_path / "pipe")
    assert "cannot be read" in refusal(tmp_path / "nothing")

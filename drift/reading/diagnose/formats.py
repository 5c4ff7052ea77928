"""Floating-point formats: what their numbers are, and how they are stored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

__all__ = ["FORMATS", "SIZES", "STORED", "Format", "decoded", "fits", "written"]


@dataclass(frozen=True)
class Format:
    """A floating-point format.

    Attributes
    ----------
    name : str
        As it is written on the page.
    bits : int
        Bits of the significand, the leading one included; the unit roundoff is ``2**-bits``.
    largest : float
        Largest finite number.
    quantum : float
        Smallest positive number.
    """

    name: str
    bits: int
    largest: float
    quantum: float

    @property
    def unit_roundoff(self) -> float:
        """Half the distance from 1 to the next number."""
        return 2.0**-self.bits


FORMATS: dict[str, Format] = {
    "F8_E5M2": Format("fp8_e5m2", 3, 57344.0, 2.0**-16),
    "F8_E4M3": Format("fp8_e4m3", 4, 448.0, 2.0**-9),
    "BF16": Format("bf16", 8, float.fromhex("0x1.fep127"), 2.0**-133),
    "F16": Format("fp16", 11, 65504.0, 2.0**-24),
    "F32": Format("fp32", 24, float(np.finfo(np.float32).max), 2.0**-149),
    "F64": Format("fp64", 53, float(np.finfo(np.float64).max), 2.0**-1074),
}
"""Formats that can be read, from the fewest significant bits to the most, by their names in safetensors headers."""
SIZES = {"F8_E5M2": 1, "F8_E4M3": 1, "BF16": 2, "F16": 2, "F32": 4, "F64": 8}


def fits(values: np.ndarray, form: Format) -> bool:
    """Tell whether every finite number of an array is a number of a format.

    Parameters
    ----------
    values : ndarray of float32 or float64
        Any shape.
    form : Format
        A format.
    """
    if form.bits >= np.finfo(values.dtype).nmant + 1:
        return True
    if form.name == "bf16" and values.dtype == np.float32:
        # A NaN or Inf passes as well: what is asked is whether the lower half of the word was ever used.
        return not np.any(np.ascontiguousarray(values).view(np.uint32) & np.uint32(0xFFFF))
    numbers = values[np.isfinite(values)].astype(np.float64)
    if numbers.size and np.abs(numbers).max() > form.largest:
        return False
    mantissa, exponent = np.frexp(numbers)
    lowest = math.frexp(form.quantum)[1]
    # Below the normal numbers the quantum bounds the bits that are left.
    bits = np.minimum(exponent - lowest + 1, form.bits)
    scaled = np.ldexp(mantissa, bits)
    return bool(np.all(scaled == np.rint(scaled)))


def written(values: np.ndarray, form: Format) -> np.ndarray:
    """Round numbers to a format, to nearest, ties to even; beyond its largest number they are clipped."""
    mantissa, exponent = np.frexp(np.asarray(values, dtype=np.float64))
    lowest = math.frexp(form.quantum)[1]
    bits = np.minimum(exponent - lowest + 1, form.bits)
    rounded = np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)
    return np.clip(rounded, -form.largest, form.largest)


@lru_cache(maxsize=2)
def _fp8_table(dtype: str) -> np.ndarray:
    """All 256 numbers of an 8-bit format, as float32."""
    exponent_bits, bias = (4, 7) if dtype == "F8_E4M3" else (5, 15)
    mantissa_bits = 7 - exponent_bits
    code = np.arange(256)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    fraction = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    value = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
    if dtype == "F8_E4M3":
        value[(code & 0x7F) == 0x7F] = np.nan
    else:
        top = exponent == 31
        value[top] = np.where(fraction[top] == 0, np.inf, np.nan)
    return np.where(code >= 128, -value, value).astype(np.float32)


def decoded(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Turn stored numbers into float32, or float64 where they are."""
    if dtype == "F64":
        return np.asarray(raw, dtype=np.float64)
    if dtype == "BF16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype in ("F8_E4M3", "F8_E5M2"):
        return _fp8_table(dtype)[raw]
    return raw.astype(np.float32)


STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1"}

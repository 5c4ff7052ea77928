"""Is a recorded cell what this machine computes? Bit for bit, or within the rounding floor; see docs/verify.md."""

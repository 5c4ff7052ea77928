"""The reading wing: cells in, verdicts and pages out. No torch."""

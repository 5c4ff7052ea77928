"""One file per kind of figure; each takes a sweep and returns a figure whose title says what it shows."""

from drift.reading.figures.chain import drift_per_step, nonfinite
from drift.reading.figures.controls import response
from drift.reading.figures.depth import depth_growth, heat_map, keys_values, worst_tokens
from drift.reading.figures.floor import drift_and_floor
from drift.reading.figures.forest import equivalence
from drift.reading.figures.gain import gains
from drift.reading.figures.ladder import levels
from drift.reading.figures.level import level_vs_chunk_size, level_vs_roundoff
from drift.reading.figures.logits import logits_per_step
from drift.reading.figures.noise import response_to_noise
from drift.reading.figures.parts import attribution
from drift.reading.figures.plateau import plateau_fit
from drift.reading.figures.retrieval import (
    costs_of_steps,
    failure_against_drift,
    found_by_depth,
    found_by_distance,
    likelihood_by_task,
)
from drift.reading.figures.showing import described, png, show
from drift.reading.figures.side_by_side import readings
from drift.reading.figures.style import choose, groups
from drift.reading.figures.why import growth_with_position, inherited_per_step, inherited_through_depth

__all__ = [
    "attribution",
    "choose",
    "costs_of_steps",
    "depth_growth",
    "described",
    "drift_and_floor",
    "drift_per_step",
    "equivalence",
    "failure_against_drift",
    "found_by_depth",
    "found_by_distance",
    "gains",
    "groups",
    "growth_with_position",
    "heat_map",
    "inherited_per_step",
    "inherited_through_depth",
    "keys_values",
    "level_vs_chunk_size",
    "level_vs_roundoff",
    "levels",
    "likelihood_by_task",
    "logits_per_step",
    "nonfinite",
    "plateau_fit",
    "png",
    "readings",
    "response",
    "response_to_noise",
    "show",
    "worst_tokens",
]

"""The published claims, as data."""

from __future__ import annotations

from drift import _published as largest
from drift.reading.claims.against import c1_accumulation, c1_excess
from drift.reading.claims.chunking import c3
from drift.reading.claims.cost import PUBLISHED_BYTES, PUBLISHED_SECONDS, c6_cost
from drift.reading.claims.model import PUBLISHED_CHUNKS, PUBLISHED_DEPTH, PUBLISHED_EFFECT, Claim
from drift.reading.claims.models import c4_level, c4_plateau
from drift.reading.claims.precision import c2
from drift.reading.claims.retrieval import c5_across, c5_difference, c5_retrieval, c5_streaming
from drift.reading.claims.saturation import c1_plateau, c1_rise
from drift.reading.excess import FLOOR_COMMAND, ONE_STEP_COMMAND

__all__ = ["CLAIMS"]

RETRIEVAL_COMMAND = "python -m drift.sweep retrieval"
# ---------------------------------------------------------------------------------------------- the table
_MORE = "more documents or a deeper chain, where undetermined; a chain that changes beyond the depth measured here"
CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1", "plateau",
        "per-step drift saturates into a flat plateau that persists in deep chains, to depth "
        f"{PUBLISHED_DEPTH}",
        "growth per doubling of depth within {growth}: over the {doublings} doublings to depth {depth} at most a "
        "factor {growth_reach}; a square root grows {root} per doubling, a logarithm {logarithm} or more",
        c1_plateau, "", _MORE, of_depth=True,
    ),
    Claim(
        "C1", "rise",
        "drift rises briefly (about ten transitions) before it saturates",
        "level at least {rise:g} times the first step at which the passes are not the same bits",
        c1_rise, "", "another first step: other kernels, or another chunk size", of_depth=True,
    ),
    Claim(
        "C1", "excess",
        "not published: drift in units of how far full attention is from itself, over the same tokens, when it rounds "
        "differently; what tokens late in a text do to both cancels",
        "growth of drift over its rounding floor within {growth} per doubling of depth",
        c1_excess, "", _MORE,
        absent="no rounding floor was measured by this measure; `" + FLOOR_COMMAND + "` measures it.", ours=True,
        of_depth=True,
    ),
    Claim(
        "C1", "accumulation",
        "not published: drift in units of the error that one step makes on full attention's own keys and values; what "
        "a chain inherits is in the first alone",
        "growth of drift over its one-step error within {growth} per doubling of depth",
        c1_accumulation, "", _MORE,
        absent="no one-step error was measured; `" + ONE_STEP_COMMAND + "` measures it.", one_step=True, ours=True,
        of_depth=True,
    ),
    Claim(
        "C2", "precision",
        "the plateau is insensitive to a 10,000x change of precision (bf16 to fp32: "
        f"{100 * PUBLISHED_EFFECT:g} % lower)",
        "change over the tested range of precisions within {precision}, {effects} times the published effect; the "
        "alternative, proportionality to the unit roundoff, is a log-log slope within {proportional:g} of 1",
        c2, "", "more precisions (fp16, tf32, fp64), other kernels: bf16 rounds what it stores and accumulates in fp32",
    ),
    Claim(
        "C3", "chunk size",
        f"robust across chunk sizes {PUBLISHED_CHUNKS[0]} to {PUBLISHED_CHUNKS[-1]}",
        "change per doubling of the chunk size within {chunk}: at most {chunk_reach} over the published "
        "{chunk_doublings} doublings",
        c3, "", "more documents, where undetermined; chunk sizes beyond those measured here", of_depth=True,
    ),
    Claim(
        "C4", "level",
        "the same across model families (Llama, Qwen, Gemma, and OLMoE)",
        "levels of any two tested models within a factor {family:g}, at the same chunk size and number of tokens: "
        "{family_bits}, where the precisions are {bits} bits apart",
        c4_level, "", "larger models; with fewer than {families} families nothing can be said of families at large",
        of_depth=True,
    ),
    Claim(
        "C4", "plateau",
        "every family has the plateau",
        "C1 supported for every tested model; refuted by one that is refuted",
        c4_plateau, "", "whatever changes C1 for one of the models", of_depth=True,
    ),
    Claim(
        "C5", "retrieval",
        "100 % exact match, needle in a haystack, 152 trials, 16K to 128K tokens",
        "share of exact answers within {retrieval} of all",
        None, "no task was asked; `" + RETRIEVAL_COMMAND + "` asks one.",
        "more trials, where undetermined; longer texts, larger models", asked=c5_retrieval,
    ),
    Claim(
        "C5", "as full attention",
        "not published: the fold finds what full attention finds in the same texts",
        "difference of the shares of exact answers, on the same items, within {retrieval}",
        None, "", "more trials, where undetermined", ours=True, asked=c5_difference,
    ),
    Claim(
        "C5", "streaming",
        "a fold with a window (StreamingLLM) finds 0 % of what has left it",
        "share of exact answers out of the window within {retrieval} of none",
        None, "", "more trials out of the window", absent="this reading has no window.", asked=c5_streaming,
    ),
    Claim(
        "C5", "across chunks",
        "not published: answers that rest on facts in several chunks are as likely as under full attention",
        "change of the answer's log-likelihood within {likelihood}: it becomes neither half nor twice as likely",
        None, "", "more texts, where undetermined; tasks that a larger model can do", ours=True, asked=c5_across,
        absent="no task whose answer rests on several facts was asked.",
    ),
    Claim(
        "C6", "cost",
        f"{largest.TOKENS // 1024}K tokens in {PUBLISHED_BYTES / 1e9:g} GB and {PUBLISHED_SECONDS} s on one A100 "
        "40 GB",
        "not applicable", None, "no pass of this size was run, and drift's own recording is part of its times.",
        "a run at this size on such a GPU", asked=c6_cost,
    ),
)  # fmt: skip

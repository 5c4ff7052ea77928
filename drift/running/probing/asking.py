"""Ask all prompts in every way that is to be compared.

Where a server can be told to compute a prompt anew, the cold lane, its repeats and the batches are; a lane of a cache
is asked right after what it is to find there. Where it cannot, whatever follows the first time may come from a cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from enum import StrEnum

from drift.dataset.probes import Answer, AskedLane, Kind, Probe, View
from drift.errors import EndpointError
from drift.running.probing.client import Client
from drift.running.probing.prompts import Prompt, salt
from drift.running.probing.servers import Server
from drift.shown import clipped

__all__ = ["Lane", "Plan", "ask"]

_REFUSED = (
    400,
    403,
    404,
    405,
    422,
    500,
    501,
)  # what a trial may meet where the prompt's log-probabilities are not given


class Lane(StrEnum):
    """Lanes beside the cold one and its repeats."""

    WARM = "warm"
    SHARED = "shared"
    BATCH = "batch"


_NAMES = {Lane.WARM: "warm", Lane.SHARED: "shared prefix"}


@dataclass(frozen=True)
class Plan:
    """What is to be asked.

    Attributes
    ----------
    prompts : sequence of Prompt
    nonce : str
    tokens : int
        Generated per prompt.
    repeats : int
    lanes : frozenset of Lane
    """

    prompts: Sequence[Prompt]
    nonce: str
    tokens: int
    repeats: int
    lanes: frozenset[Lane] = field(default_factory=lambda: frozenset(Lane))

    @property
    def sizes(self) -> list[int]:
        """Of the batches: all at a time, and half of them."""
        if Lane.BATCH not in self.lanes or len(self.prompts) < 2:
            return []
        return sorted({len(self.prompts), max(2, len(self.prompts) // 2)}, reverse=True)

    @property
    def most_requests(self) -> int:
        """Requests that are sent at most, of which three find out what the server is."""
        generated = 2 + self.repeats + 2 * (Lane.SHARED in self.lanes) + len(self.sizes)
        prompt = 1 + self.repeats + len(self.sizes)
        return 3 + len(self.prompts) * (generated + prompt)


class _Asker:
    """Asks prompts one after the other, or several at a time, and says how far it is."""

    def __init__(self, client: Client, server: Server, plan: Plan, report: Callable[[str], None]) -> None:
        self._client, self._server, self._plan, self._report = client, server, plan, report
        self._salts = 0

    def fresh(self) -> str:
        """A salt that was not used before."""
        self._salts += 1
        return salt(self._plan.nonce, "salt", self._salts)

    def one(
        self, prompt: str | list[int], view: View, using: str, *, cached: bool = False, tokens: int | None = None
    ) -> Answer:
        """Ask one prompt."""
        due = (1 if view is View.PROMPT else self._plan.tokens) if tokens is None else tokens
        return self._server.ask(self._client, self._server.asked(prompt, view, due, using, cached=cached), view)

    def together(self, view: View, size: int) -> tuple[Answer, ...]:
        """Ask all prompts, so many at a time."""
        self._report(f"{view.value}: {size} at a time")
        with ThreadPoolExecutor(size) as pool:
            jobs = [pool.submit(self.one, prompt.whole, view, self.fresh()) for prompt in self._plan.prompts]
            try:
                done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
                for job in done:
                    job.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._client.close()  # else the pool waits for what is under way
                raise
            return tuple(job.result() for job in jobs)

    def generated(self) -> Iterator[tuple[str, Kind, Answer]]:
        """Ask prompt after prompt for generated tokens: name and kind of a lane, and an answer of it."""
        plan, switch = self._plan, self._server.can_compute_anew
        for number, prompt in enumerate(plan.prompts, 1):
            self._report(f"{View.GENERATED.value}: prompt {number} of {len(plan.prompts)}")
            if switch and Lane.SHARED in plan.lanes:
                shared = self.fresh()
                self.one(prompt.sibling, View.GENERATED, shared, cached=True, tokens=1)
                yield _NAMES[Lane.SHARED], Kind.CACHE, self.one(prompt.whole, View.GENERATED, shared, cached=True)
            first = self.fresh()
            yield "cold", Kind.COLD, self.one(prompt.whole, View.GENERATED, first)
            if Lane.WARM in plan.lanes:
                yield _NAMES[Lane.WARM], Kind.CACHE, self.one(prompt.whole, View.GENERATED, first, cached=True)
            for again in range(1, plan.repeats + 1):
                yield f"repeat {again}", Kind.REPEAT, self.one(prompt.whole, View.GENERATED, self.fresh())

    def of_prompts(self) -> Iterator[tuple[str, Kind, Answer]]:
        """Ask prompt after prompt for its own tokens, as :meth:`generated`."""
        plan = self._plan
        for number, prompt in enumerate(plan.prompts, 1):
            self._report(f"{View.PROMPT.value}: prompt {number} of {len(plan.prompts)}")
            yield "cold", Kind.COLD, self.one(prompt.whole, View.PROMPT, self.fresh())
            for again in range(1, plan.repeats + 1):
                yield f"repeat {again}", Kind.REPEAT, self.one(prompt.whole, View.PROMPT, self.fresh())

    def gives_prompts(self) -> bool:
        """Try whether the prompt's own log-probabilities are given."""
        short = f"{self.fresh()} one two three four five"
        try:
            return len(self.one(short, View.PROMPT, self.fresh()).tokens) > 2
        except EndpointError as error:
            if error.status in _REFUSED:
                return False
            raise


def _lanes(asked: Iterator[tuple[str, Kind, Answer]], view: View, *, anew: bool) -> list[AskedLane]:
    """Gather the answers of each lane; the cold one first."""
    kinds: dict[str, Kind] = {}
    answers: dict[str, list[Answer]] = {}
    for name, kind, answer in asked:
        kinds[name] = kind
        answers.setdefault(name, []).append(answer)
    order = sorted(kinds, key=lambda name: kinds[name] is not Kind.COLD)
    return [
        AskedLane(name, kinds[name], view, tuple(answers[name]), anew and kinds[name] is not Kind.CACHE)
        for name in order
    ]


def ask(client: Client, server: Server, plan: Plan, report: Callable[[str], None]) -> Probe:
    """Ask a server all that is planned.

    Parameters
    ----------
    client : Client
    server : Server
    plan : Plan
    report : callable
        Gets a line of progress at a time.

    Raises
    ------
    EndpointError
        If the server fails at any of it.
    """
    started = time.monotonic()
    asker, anew = _Asker(client, server, plan, report), server.can_compute_anew
    # What cannot work is found out with one request.
    if anew:
        asker.one(plan.prompts[0].whole, View.GENERATED, asker.fresh(), tokens=1)
    views = [View.GENERATED, View.PROMPT] if asker.gives_prompts() else [View.GENERATED]
    lanes: list[AskedLane] = []
    for view in views:
        way = asker.generated() if view is View.GENERATED else asker.of_prompts()
        lanes += _lanes(way, view, anew=anew)
        lanes += [
            AskedLane(f"{size} at a time", Kind.BATCH, view, asker.together(view, size), anew) for size in plan.sizes
        ]
    left_out = []
    if Lane.SHARED in plan.lanes and not anew:
        left_out.append(
            f"{_NAMES[Lane.SHARED]}: {clipped(server.engine)} gives no way to compute a prompt anew that its cache "
            "knows (name one with --anew)"
        )
    if View.PROMPT not in views:
        left_out.append("the prompt's own tokens: the server gives log-probabilities of generated tokens alone")
    return Probe(
        client.endpoint, server.engine.value, server.model, plan.nonce, tuple(lanes), tuple(left_out),
        client.requests, time.monotonic() - started,
    )  # fmt: skip

"""Does a training step fit a card, and what is the least to give up so that it does?

A card has to hold what PyTorch's allocator reserves and the CUDA context, which is what
`Estimate.device_range` says. All sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from loralab.errors import CourseError
from loralab.memory import architectures
from loralab.memory.changes import COSTS, Change, Values, possible
from loralab.memory.formula import estimate, moments
from loralab.memory.held import held_bytes, trained_sizes
from loralab.memory.result import Estimate
from loralab.memory.settings import Settings, chosen
from loralab.memory.simulation import simulate

FITS, PERHAPS, NOT = "fits", "fits perhaps", "does not fit"
WITHIN = 1.08  # formula and simulation differ by less
ORDER = tuple(COSTS)
Part = tuple[Change, Values]  # a change at one of its levels


def verdict(found: Estimate, card: float) -> str:
    """`FITS`: the upper end of what `nvidia-smi` may show is within the card. `PERHAPS`: the lower
    end is. `NOT`: neither."""
    low, high = found.device_range
    return FITS if high <= card else PERHAPS if low <= card else NOT


@dataclass(frozen=True)
class Proposal:
    """Settings to change together, what that costs (of `changes.COSTS`), the prediction with them.

    `accumulation`: batches whose gradients are added up before a step, so that as many tokens as
    before make one; the prediction has those gradients alive all the time.
    """

    change: Values
    costs: tuple[str, ...]
    predicted: Estimate
    accumulation: int = 1

    def to_dict(self) -> dict[str, Any]:
        return {
            "change": dict(self.change),
            "gradient_accumulation_steps": self.accumulation,
            "costs": list(self.costs),
            "peak_allocated_bytes": self.predicted.total,
            "device_range_bytes": list(self.predicted.device_range),
        }


@dataclass(frozen=True)
class Fit:
    """`verdict` of a card, and the cheapest `proposals` after which the verdict is `then`.

    `proposals` are None where none were looked for. Where there are none, nothing is enough:
    `least` has all changes that save something.
    """

    card: int
    verdict: str
    then: str = FITS
    proposals: tuple[Proposal, ...] | None = None
    least: Proposal | None = None

    def to_dict(self) -> dict[str, Any]:
        """As `loralab memory --json --gpu` prints it."""
        said: dict[str, Any] = {"card_bytes": self.card, "verdict": self.verdict}
        if self.proposals is not None:
            said["changes"] = [proposal.to_dict() | {"verdict": self.then}
                               for proposal in self.proposals]
        if self.least:
            said["all_changes"] = self.least.to_dict()
        return said


def fit(found: Estimate, model: Any, method: str, given: Mapping[str, Any], card: int,
        most: int = 3) -> Fit:
    """Whether a step fits a card of `card` bytes, and the `most` cheapest ways to make it fit.

    `found`: the prediction of `model`, `method` and the settings `given`. What is proposed is
    predicted in the same way: for a simulation the formula only chooses what is worth one.

    Single changes come first, in the order of `changes.possible`, each at the mildest level that
    is enough; then pairs of changes of which neither is enough alone, those whose dearer half is
    cheaper first; where not even a pair is enough, as many together as it takes. Where nothing
    fits for certain, the same for what fits perhaps.
    """
    now = verdict(found, card)
    if now == FITS:
        return Fit(card, now)
    search = _Search(model, method, dict(given), card, simulated=found.by == "simulation")
    for enough in (FITS, PERHAPS) if now == NOT else (FITS,):
        if proposals := search.few(enough, most) or search.many(enough):
            return Fit(card, now, enough, tuple(proposals))
    return Fit(card, now, proposals=(), least=search.least())


class _Search:
    def __init__(self, model: Any, method: str, given: Values, card: int, *, simulated: bool):
        self.arch = architectures.describe(model)
        self.base = {"method": method} | given
        self.card, self.simulated = card, simulated
        self.step = self._chosen({})
        self.changes = possible(self.step, given)

    def few(self, enough: str, most: int) -> list[Proposal]:
        """Proposals of one change, then of two of those that are not enough alone."""
        found, others = [], []
        for change in self.changes:
            proposal = self._mildest((change,), enough)
            found += [proposal] if proposal else []
            others += [] if proposal else [change]
            if len(found) == most:
                return found
        pairs = ((others[first], others[second])
                 for second in range(len(others)) for first in range(second))
        for pair in pairs:
            if pair[0].names & pair[1].names:
                continue
            if proposal := self._mildest(pair, enough):
                found.append(proposal)
            if len(found) == most:
                break
        return found

    def _mildest(self, kinds: Sequence[Change], enough: str) -> Proposal | None:
        """The first combination of their levels that is enough, the mildest first."""
        places = product(*(range(len(kind.levels)) for kind in kinds))
        for at in sorted(places, key=lambda at: (sum(at), at)):
            taken = [(kind, kind.levels[level]) for kind, level in zip(kinds, at)]
            if found := self._enough(taken, enough):
                return found
        return None

    def many(self, enough: str) -> list[Proposal]:
        """Changes from the cheapest on, at their strongest, until they are enough; then less of
        each, and none of those that it does not take, the dearest first."""
        slack = 1 / WITHIN if self.simulated else 1
        taken: list[Part] = []
        for part in self._savings():
            taken.append(part)
            if self._formula_says(taken, enough, slack):
                break
        else:
            return []
        taken.sort(key=lambda part: ORDER.index(part[0].costs[-1]))
        for place in reversed(range(len(taken))):
            before, (kind, _), after = taken[:place], taken[place], taken[place + 1:]
            less = [[], *([(kind, level)] for level in kind.levels)]
            taken = next(fewer for some in less if (fewer := before + some + after)
                         and self._formula_says(fewer, enough, slack))
        found = self._enough(taken, enough)
        return [found] if found else []

    def least(self) -> Proposal | None:
        """All changes that save something."""
        taken = list(self._savings())
        return self._predicted(taken, self.simulated) if taken else None

    def _savings(self) -> Iterator[Part]:
        """Each change at its strongest, if it saves something after those before it. One may do
        so only after a later one, or be possible only then: adapters come with LoRA."""
        taken: list[Part] = []
        size, kinds = self._predicted([]).predicted.total, self.changes
        while kinds:
            before = len(taken)
            for kind in kinds:
                more = self._predicted([*taken, (kind, kind.levels[-1])])
                if more and more.predicted.total < size:
                    taken.append((kind, kind.levels[-1]))
                    size = more.predicted.total
                    yield taken[-1]
            change = _merged(taken)
            kinds = [kind for kind in possible(self._chosen(change), self.base | change)
                     if len(taken) > before and not kind.names & change.keys()]

    def _enough(self, taken: Sequence[Part], enough: str) -> Proposal | None:
        """The proposal, if it is enough. A simulation is run only if the formula comes near."""
        found = self._formula_says(taken, enough, WITHIN if self.simulated else 1)
        if found and self.simulated:
            found = self._predicted(taken, by_simulation=True)
            fits = found and verdict(found.predicted, self.card) in (FITS, enough)
            return found if fits else None
        return found

    def _formula_says(self, taken: Sequence[Part], enough: str, slack: float) -> Proposal | None:
        found = self._predicted(taken)
        fits = found and verdict(found.predicted, self.card * slack) in (FITS, enough)
        return found if fits else None

    def _predicted(self, taken: Sequence[Part],
                   by_simulation: bool = False) -> Proposal | None:
        """None where the settings that the changes lead to cannot train, or not be simulated."""
        change = _merged(taken)
        settings = self.base | change
        predict = simulate if by_simulation else estimate
        try:
            step = self._chosen(change)
            found = predict(self.arch, settings.pop("method"), **settings)
        except CourseError:
            return None
        times = self.step.batch // step.batch
        if times > 1:
            parts = dict(found.components)
            parts["gradients"] += accumulated_bytes(step)
            found = replace(found, components=parts)
        costs = {cost for kind, _ in taken for cost in kind.costs}
        costs -= {"nothing"} if len(costs) > 1 else set()
        return Proposal(change, tuple(sorted(costs, key=ORDER.index)), found, times)

    def _chosen(self, change: Values) -> Settings:
        settings = self.base | change
        return chosen(self.arch, settings.pop("method"), settings)


def _merged(taken: Sequence[Part]) -> Values:
    return {name: value for _, level in taken for name, value in level.items()}


def accumulated_bytes(step: Settings) -> int:
    """By how much the peak grows, at most, when the gradients of earlier batches are kept.

    At every moment all gradients are alive then, and the newest one that is to be added to them.
    """
    held = held_bytes(step)
    trained = trained_sizes(step)
    newest = max(trained) * held["gradients"] // sum(trained)
    alive = [parts for _, parts in moments(step, held)]
    later = [parts | {"gradients": held["gradients"] + newest} for parts in alive]
    return round(max(sum(parts.values()) for parts in later)
                 - max(sum(parts.values()) for parts in alive))

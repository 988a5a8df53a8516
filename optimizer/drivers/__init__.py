"""Which search drivers are there? One literal table; a driver is one file here and one line in it.

A driver's class has a nested `Options` (a pydantic model that refuses unknown keys), and is made as
`Class(domain, objectives, seed, options)`; see `optimizer.driver.Driver` for what it owes. Drivers of other packages
come in through the entry point group `mergeopt.drivers`, each naming an `Entry`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from optimizer.driver import Domain, Driver, DriverError

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["DRIVERS", "GROUP", "DriverClass", "DriverError", "Entry", "find", "table"]

GROUP = "mergeopt.drivers"


@dataclass(frozen=True)
class Entry:
    """Where a driver's class is (`module:Class`), how many objectives it takes, and what it is in one line.

    A driver that asks for gradients has a `loss`, by default: kinds that evaluators offer (see
    `evaluators.evaluator.Differentiable`) and their weights; `temperature` is that of the kind `kl`. Where `optional`,
    it asks for them where the job's entry says of what (`driver.gradients`), and does without them elsewhere. Where
    `plain`, it takes a point's coordinates for the coefficients themselves, which they are not in a simplex. Where
    `several`, it may choose among linear methods, and asks for the gradients of one.

    `needs` says what a space must have: `experts` as points, or searched `options`, sparsities, beside coefficients.
    One that `ends` by itself does so when it has nothing left to ask, and may wait for answers before that.
    """

    target: str
    objectives: Literal["one", "any"]
    summary: str
    loss: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    plain: bool = False
    needs: Literal["", "experts", "options"] = ""
    ends: bool = False
    optional: bool = False
    several: bool = False

    def asks_gradients(self, wanted: object | None) -> bool:
        """Whether it asks for gradients in a job whose driver's entry has these `gradients`, or none."""
        return bool(self.loss) and not (self.optional and wanted is None)

    def load(self) -> DriverClass:
        """The class; its search library is imported now and not before. Raises DriverError where that fails."""
        module, _, attribute = self.target.partition(":")
        try:
            return cast(DriverClass, getattr(importlib.import_module(module), attribute))
        except (ImportError, AttributeError) as error:
            raise DriverError(f"cannot load the driver {self.target}: {error}; install or mend its package") from error


class DriverClass(Protocol):
    """A class of the table, seen as what makes drivers. Raises DriverError where it cannot serve."""

    Options: type[BaseModel]

    def __call__(self, domain: Domain, objectives: int, seed: int, options: Any) -> Driver: ...


DRIVERS: dict[str, Entry] = {
    "auto": Entry(
        "optimizer.drivers.auto:Auto",
        "any",
        "coarse moves first, then finer ones, where models of scores (and gradients) promise most",
        {"cross_entropy": 1.0},
        optional=True,
        several=True,
    ),
    "random": Entry("optimizer.drivers.sampling:Random", "any", "uniform points, each independent of all others"),
    "sobol": Entry("optimizer.drivers.sampling:Sobol", "any", "a scrambled Sobol sequence: fills the space evenly"),
    "cma": Entry("optimizer.drivers.cma:CMAES", "one", "CMA-ES; sep-CMA-ES above 100 dimensions"),
    "tpe": Entry("optimizer.drivers.tpe:TPE", "any", "tree-structured Parzen estimator"),
    "nsga2": Entry("optimizer.drivers.nsga:NSGA2", "any", "NSGA-II: a population that spreads over the front"),
    "nsga3": Entry("optimizer.drivers.nsga:NSGA3", "any", "NSGA-III: the same for four objectives and more"),
    "gp": Entry("optimizer.drivers.gp:GP", "any", "a Gaussian process; for few and dear evaluations"),
    "map": Entry("optimizer.drivers.map:MAP", "any", "MAP: quadratics in one coefficient per expert, and their front"),
    "greedy_soup": Entry(
        "optimizer.drivers.soup:GreedySoup",
        "any",
        "averages experts, the best first, as long as that helps",
        needs="experts",
        ends=True,
    ),
    "metrics_weighted": Entry(
        "optimizer.drivers.weighted:MetricsWeighted",
        "any",
        "averages of experts, weighted by powers of their scores",
        needs="experts",
        ends=True,
    ),
    "lm_cocktail": Entry(
        "optimizer.drivers.weighted:Cocktail",
        "any",
        "averages of experts, weighted by a softmax of minus their losses",
        needs="experts",
        ends=True,
    ),
    "kinship": Entry(
        "optimizer.drivers.kinship:Kinship",
        "any",
        "averages the best with each other, and with whom they are least related to",
        needs="experts",
        ends=True,
    ),
    "m2n2": Entry(
        "optimizer.drivers.natural_niches:NaturalNiches",
        "any",
        "children of merges that are strong where the other is not, in niches that are shared",
    ),
    "evo_merging": Entry(
        "optimizer.drivers.evo_merging:EvoMerging",
        "any",
        "evolves a sparsity and a signed scale for each expert",
        needs="options",
    ),
    "adamerging": Entry(
        "optimizer.drivers.adamerging:AdaMerging",
        "any",
        "Adam on the coefficients; entropy, no labels",
        {"entropy": 1.0},
    ),
    "supervised": Entry(
        "optimizer.drivers.adamerging:Supervised", "any", "Adam on the coefficients; labels", {"cross_entropy": 1.0}
    ),
    "expert_merging": Entry(
        "optimizer.drivers.expert_merging:ExpertMerging",
        "any",
        "Adam on bounded coefficients that stay near their start; aligned to the experts, no labels",
        {"kl": 1.0, "hidden": 1.0},
        plain=True,
    ),
    "expert_merging_pp": Entry(
        "optimizer.drivers.expert_merging:ExpertMergingPlus",
        "any",
        "the same, by layer, then in more pieces where a layer matters",
        {"kl": 1.0, "hidden": 1.0},
        plain=True,
    ),
    "dam": Entry(
        "optimizer.drivers.dam:DAM",
        "any",
        "Adam on an average of experts, kept unlike each other",
        {"kl": 1.0},
        2.0,
        plain=True,
    ),
    "frank_wolfe": Entry(
        "optimizer.drivers.frank_wolfe:FrankWolfe",
        "any",
        "steps towards the expert that lowers the loss most",
        {"cross_entropy": 1.0},
        plain=True,
    ),
    "frank_wolfe_soft": Entry(
        "optimizer.drivers.frank_wolfe:SoftFrankWolfe",
        "any",
        "adds the best expert of each task, round by round, and learns the coefficients of those added",
        {"cross_entropy": 1.0},
        plain=True,
    ),
    "mgda": Entry(
        "optimizer.drivers.pareto:MGDA",
        "any",
        "Adam along the direction that lowers every loss",
        {"cross_entropy": 1.0},
    ),
    "pareto": Entry(
        "optimizer.drivers.pareto:ParetoPath",
        "any",
        "traces the front: preferences move step by step, each search begins where its neighbour ended",
        {"cross_entropy": 1.0},
    ),
}


def table() -> dict[str, Entry]:
    """`DRIVERS` and what installed packages add. Raises DriverError on a name taken twice, or on what is no Entry."""
    found = dict(DRIVERS)
    for point in importlib.metadata.entry_points(group=GROUP):
        entry = point.load()
        if not isinstance(entry, Entry):
            raise DriverError(
                f"the entry point {point.name!r} of group {GROUP} is a {type(entry).__name__}, expected an"
                f" optimizer.drivers.Entry; mend or uninstall the package that declares {point.value!r}"
            )
        if point.name in found:
            raise DriverError(
                f"the driver {point.name!r} is there twice: {found[point.name].target} and {entry.target};"
                f" rename or uninstall the package that declares {point.value!r}"
            )
        found[point.name] = entry
    return found


def find(name: str) -> Entry:
    """The driver of this name. Raises DriverError, with the nearest names, where there is none."""
    known = DRIVERS if name in DRIVERS else table()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DriverError(f"driver.name: there is no driver {name!r}; {hint}there are: {', '.join(sorted(known))}")
    return known[name]

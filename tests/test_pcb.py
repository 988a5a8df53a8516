"""Is PCB-Merging what its authors' code does, where that is defined, and defined where it is not?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch

from searchspaces.given import Given
from searchspaces.methods.pcb import PCB
from searchspaces.option import complete

Model = dict[str, torch.Tensor]


def normal(x: torch.Tensor) -> torch.Tensor:
    least, most = x.min(dim=1, keepdim=True).values, x.max(dim=1, keepdim=True).values
    return (x - least) / (most - least)


def pulled_in(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Each row between its entries of these ranks, as shares of its length."""
    ordered, count = x.sort(dim=1).values, x.shape[1]
    return x.clamp(ordered[:, int(count * low), None], ordered[:, int(count * (1 - high) - 1), None])


def authors(taus: torch.Tensor, ratio: float, lambdas: torch.Tensor, more: int = 0) -> torch.Tensor:
    """The merged task vector of `(K, d)`, in float64, as the authors' formulas have it; K counts `more` besides."""
    taus = taus.double()
    sizes = pulled_in(taus.abs(), 1e-4, 1e-4)
    score = torch.exp((len(taus) + more) * normal(sizes) ** 2) * torch.tanh(taus * taus.sum(dim=0))
    weight = normal(pulled_in(score, 1 - ratio, 0))
    return (taus.sign() * sizes * lambdas[:, None] * weight).sum(dim=0) / weight.sum(dim=0).clamp(min=1e-12)


def models(count: int, seed: int = 0) -> tuple[Model, dict[str, Model]]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (90, 60), "a.bias": (90,), "b.weight": (7, 60), "k.weight": (4, 3, 2, 2)}
    base = {n: torch.randn(s, generator=draw) for n, s in shapes.items()}
    return base, {
        f"e{k}": {n: t + 0.02 * (k + 1) * torch.randn(t.shape, generator=draw) for n, t in base.items()}
        for k in range(count)
    }


def parts(base: Model, experts: Mapping[str, Model], **options: float) -> dict[str, list[torch.Tensor]]:
    method = PCB(complete("pcb", PCB.options, options))

    def tensors() -> Iterator[tuple[str, torch.Tensor, Model]]:
        return ((n, t, {e: m[n] for e, m in experts.items()}) for n, t in base.items())

    method.survey(tensors)
    return {n: list(method.process(Given(n, t, e))) for n, t, e in tensors()}


def flat(model: Mapping[str, torch.Tensor], names: Model) -> torch.Tensor:
    return torch.cat([model[n].reshape(-1) for n in names])


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.7])
@pytest.mark.parametrize("count", [2, 4])
def test_its_sum_is_the_authors_merge_with_a_lambda_for_each_task(count: int, ratio: float) -> None:
    base, experts = models(count)
    taus = torch.stack([flat(m, base) - flat(base, base) for m in experts.values()])
    found = parts(base, experts, ratio=ratio)
    for lambdas in (torch.ones(count), torch.linspace(0.3, 1.3, count)):
        merged = {n: sum(c * t for c, t in zip(lambdas, kept, strict=True)) for n, kept in found.items()}
        torch.testing.assert_close(
            flat(merged, base).double(), authors(taus, ratio, lambdas.double()), rtol=1e-5, atol=1e-5
        )
    kept = [float((flat({n: t[k] for n, t in found.items()}, base) != 0).double().mean()) for k in range(count)]
    assert kept == pytest.approx([ratio] * count, abs=0.01)


@pytest.mark.parametrize("count", [80, 81, 90, 120])
def test_many_experts_are_merged_as_few_are(count: int) -> None:
    """exp(K) overflows float32 from 89 experts on."""
    draw = torch.Generator().manual_seed(count)
    base = {"w": torch.randn(20, 30, generator=draw)}
    experts = {f"e{k}": {"w": base["w"] + 0.02 * torch.randn(20, 30, generator=draw)} for k in range(count)}
    taus = torch.stack([flat(m, base) - flat(base, base) for m in experts.values()])
    merged = {n: sum(kept) for n, kept in parts(base, experts).items()}
    wanted = authors(taus, 0.1, torch.ones(count).double())
    torch.testing.assert_close(flat(merged, base).double(), wanted, rtol=1e-4, atol=1e-4)


def test_many_experts_of_one_magnitude_share_what_they_agree_on() -> None:
    ones = {f"e{k}": {"w": torch.ones(4)} for k in range(200)}
    for tensor in parts({"w": torch.zeros(4)}, ones)["w"]:
        torch.testing.assert_close(tensor, torch.full((4,), 1 / 200))


def test_one_expert_is_itself_and_one_that_did_not_move_takes_no_part() -> None:
    base, experts = models(2)
    for n, kept in parts(base, {"e1": experts["e1"]}).items():
        assert len(kept) == 1 and torch.equal(kept[0], experts["e1"][n] - base[n])
    for kept in parts(base, {"still": base, "still too": base}).values():
        assert all(torch.equal(t, torch.zeros_like(t)) for t in kept)
    found = parts(base, {**experts, "still": base})
    assert all(torch.equal(kept[2], torch.zeros_like(kept[2])) for kept in found.values())
    taus = torch.stack([flat(m, base) - flat(base, base) for m in experts.values()])
    with_it = flat({n: sum(kept) for n, kept in found.items()}, base)
    expected = authors(taus, 0.1, torch.ones(2).double(), more=1)  # with it they would divide 0 by 0
    torch.testing.assert_close(with_it.double(), expected, rtol=1e-5, atol=1e-5)


def test_task_vectors_of_one_magnitude_share_what_they_agree_on() -> None:
    base = {"w": torch.zeros(4)}
    one, two = torch.tensor([1.0, 1.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])
    found = parts(base, {"one": {"w": one}, "two": {"w": two}}, ratio=0.5)["w"]
    assert [t.tolist() for t in found] == [[0.5, 0.5, 0.5, 0.0], [0.5, 0.5, 0.5, 0.0]]
    assert one.tolist() == [1, 1, 1, -1]  # and no argument is changed


def test_the_order_of_experts_and_a_second_time_change_nothing() -> None:
    base, experts = models(3)
    straight, back = parts(base, experts), parts(base, dict(reversed(experts.items())))
    for n, kept in parts(base, experts).items():
        for k, tensor in enumerate(kept):
            assert torch.equal(tensor, straight[n][k])
            torch.testing.assert_close(tensor, back[n][2 - k], rtol=1e-4, atol=1e-5)

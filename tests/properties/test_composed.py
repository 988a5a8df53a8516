"""Are compositions merged as they are defined? The kernels against plain torch, and both against the formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from searchspaces.algebra.draws import UNIT, draws
from searchspaces.composition import Composition, Keep
from searchspaces.weights import composed, composed_reference, kernel
from searchspaces.weights.composed_reference import Source
from searchspaces.weights.packed import Packed

F32, BF16 = torch.float32, torch.bfloat16
SIZES = [1, 7, 64, kernel.CHUNK - 1, kernel.CHUNK, 2 * kernel.CHUNK + 77]
CODES = {(F32, False): 0, (BF16, False): 1, (F32, True): kernel.DIFFERENCE, (BF16, True): kernel.HALF_DIFFERENCE}


@dataclass(frozen=True, eq=False)
class Case:
    composition: Composition
    base: torch.Tensor
    experts: list[Source | None]
    grad: torch.Tensor
    out: torch.dtype

    @property
    def rounded(self) -> bool:
        """Whether votes may be even but for rounding: who wins them is for the kernel and the reference to agree on."""
        c = self.composition
        return c.consensus not in ("none", "shared") and any(k.ranks is not None and k.rescale for k in c.keeps or ())

    @property
    def packed(self) -> Packed:
        return Packed.of(self.composition, tuple(self.base.shape))

    @property
    def addresses(self) -> NDArray[np.int64]:
        return np.array([0 if e is None else e.tensor.data_ptr() for e in self.experts], dtype=np.int64)

    @property
    def codes(self) -> NDArray[np.int64]:
        found = [kernel.NOTHING if e is None else CODES[e.tensor.dtype, e.difference] for e in self.experts]
        return np.array(found, dtype=np.int64)

    def by_kernel(self, cuts: Sequence[int] = (), map_=map) -> tuple[torch.Tensor, bool]:  # type: ignore[no-untyped-def]
        out, packed = torch.full(self.base.shape, math.nan, dtype=self.out), self.packed
        edges = [0, *sorted(cuts), len(out)]

        def run(edge: tuple[int, int]) -> bool:
            return composed.merge(
                packed, self.base.data_ptr(), kernel.CODES[self.base.dtype], self.addresses, self.codes,
                out.data_ptr(), kernel.CODES[out.dtype], *edge,
            )  # fmt: skip

        return out, all(list(map_(run, itertools.pairwise(edges))))

    def by_reference(self) -> tuple[torch.Tensor, bool]:
        out = torch.full(self.base.shape, math.nan, dtype=self.out)
        return out, composed_reference.merge(out, self.base, self.experts, self.packed)

    def products(self) -> NDArray[np.float64]:
        out = np.full(len(self.experts) + 2, math.nan)
        composed.products(
            self.packed, self.base.data_ptr(), kernel.CODES[self.base.dtype], self.addresses, self.codes,
            self.grad.data_ptr(), kernel.CODES[self.grad.dtype], 0, len(self.grad), out,
        )  # fmt: skip
        return out

    def task_vectors(self) -> torch.Tensor:
        """`(K, n)` float64."""
        zero = torch.zeros_like(self.base)
        found = [Source(zero, True) if e is None else e for e in self.experts]
        return torch.stack([e.tensor.double() - (0 if e.difference else self.base.double()) for e in found])


def formula(case: Case) -> torch.Tensor:
    """`u_k` by the definitions, entry by entry in float64, `(K, n)`."""
    c, raw = case.composition, case.task_vectors()
    keeps = c.keeps or (Keep(),) * len(raw)
    kept = torch.stack([stays(t, k) for t, k in zip(raw, keeps, strict=True)])
    weights = torch.from_numpy(c.weights).double()[:, None]
    if c.consensus in ("weighted", "equal"):
        voting = weights * kept if c.consensus == "weighted" else kept
        agree = voting.sign() == torch.where(voting.sum(0) >= 0, 1.0, -1.0)
    elif c.consensus == "largest":
        agree = torch.arange(len(raw))[:, None] == kept.abs().max(0).indices
    elif c.consensus == "shared":
        masks = raw.abs() > c.threshold * (raw.sum(0) - raw).abs()
        agree = (masks.sum(0) >= c.least).expand(raw.shape)
    else:
        agree = torch.ones(raw.shape, dtype=torch.bool)
    if c.spread > 0:
        varied, order = raw.var(0, unbiased=False), draws(c.key, 0, raw.shape[1]).double() / UNIT
        agree = agree & ((varied > c.spread) | ((varied == c.spread) & (order < c.until)))
    divisor = torch.ones(raw.shape[1]).double()
    if c.divisors is not None:
        divisor = (agree * torch.from_numpy(c.divisors).double()[:, None]).sum(0)
        divisor[divisor == 0] = 1
    return agree * kept * c.scale / divisor


def stays(raw: torch.Tensor, keep: Keep) -> torch.Tensor:
    found = keep.factor * raw * ((raw.abs() >= keep.least) & (raw.abs() <= keep.most))
    if keep.tied:
        order = draws(keep.key, 0, len(raw)).double() / UNIT
        found = found * ((raw.abs() > keep.least) | (order < keep.until))
        found = found * ((raw.abs() < keep.most) | (order >= keep.after))
    p = torch.full(raw.shape, keep.share).double()
    if keep.ranks is not None:
        p = p + keep.slope * (2 * keep.ranks.double() / 255 - 1)
    random = keep.ranks is not None or keep.share < 1
    if random:
        found = found * (draws(keep.key, 0, len(raw)).double() < p * UNIT)
    return found / p.clamp(1e-9, 1) if random and keep.rescale else found


def numbers(draw: torch.Generator, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Sixteenths, few enough that sums are exact in any order: votes come out alike in every precision."""
    return (torch.randint(-24, 25, (size,), generator=draw) / 16).to(dtype)


@st.composite
def keeps(draw: st.DrawFn, size: int) -> Keep:
    kind = draw(st.sampled_from(["whole", "band", "tied", "random", "ranks", "band and random", "band and ranks"]))
    band = {"least": draw(st.sampled_from([0.0, 0.25, 0.3])), "most": draw(st.sampled_from([math.inf, 1.0, 1.1]))}
    share = draw(st.sampled_from([0.0, 1 / 1024, 0.125, 0.5, 1.0]))
    options: dict[str, object] = {"factor": draw(st.sampled_from([1.0, 1.0, 2.0, -0.5]))}
    if "band" in kind:
        options |= band
    if kind == "tied":  # bounds among sixteenths are the magnitudes of many; equal ones are both bounds of the same
        options |= {"least": draw(st.sampled_from([0.25, 0.5])), "most": draw(st.sampled_from([0.5, 1.0, math.inf]))}
        options |= {"until": draw(st.sampled_from([0.0, 0.3, 1.0])), "after": draw(st.sampled_from([0.0, 0.2, 1.0]))}
        options |= {"key": draw(st.integers(0, 2**32 - 1))}
    if "random" in kind:
        options |= {"share": share, "key": draw(st.integers(0, 2**32 - 1)), "rescale": draw(st.booleans())}
    if "ranks" in kind:
        slope = draw(st.sampled_from([0.0, 0.1, 0.3, -0.2]))
        ranks = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
        options |= {"share": 0.5, "slope": slope, "ranks": ranks, "key": 5, "rescale": draw(st.booleans())}
    return Keep(**options)  # type: ignore[arg-type]


@st.composite
def cases(draw: st.DrawFn, linear: bool = False) -> Case:
    size, count = draw(st.sampled_from(SIZES)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    dtypes = st.sampled_from([F32, BF16])
    experts = [
        None if kind == "nothing" else Source(numbers(generator, size, draw(dtypes)), kind == "difference")
        for kind in draw(st.lists(st.sampled_from(["full", "difference", "nothing"]), min_size=count, max_size=count))
    ]
    eighths = st.integers(-16, 16).map(lambda n: n / 8)
    by_expert = st.lists(eighths, min_size=count, max_size=count).map(lambda w: np.array(w, dtype=np.float32))
    kinds = ["none", "equal", "largest", "shared"] if linear else ["none", "weighted", "equal", "largest", "shared"]
    composition = Composition(
        draw(st.sampled_from([1.0, 0.0, 0.75])),
        draw(by_expert),
        draw(st.none() | st.lists(keeps(size), min_size=count, max_size=count).map(tuple)),
        draw(st.sampled_from(kinds)),  # type: ignore[arg-type]
        threshold=draw(st.sampled_from([0.0, 0.4, 1.0])),
        least=draw(st.sampled_from([1, 2, 7])),
        divisors=draw(st.none() | by_expert),
        spread=draw(st.sampled_from([0.0, 0.0, 0.123, math.inf])),
        until=draw(st.sampled_from([1.0, 0.0, 0.3])),
        key=draw(st.integers(0, 2**32 - 1)),
        scale=draw(st.sampled_from([1.0, 0.5, -3.0])),
    )
    base, grad = numbers(generator, size, draw(dtypes)), torch.randn(size, generator=generator).to(draw(dtypes))
    return Case(composition, base, experts, grad, draw(dtypes))


@settings(max_examples=250, deadline=None)
@given(case=cases(), data=st.data())
def test_the_kernel_is_the_reference_is_the_formula(case: Case, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(case.base)), max_size=3))
    (ours, good), (wanted, well) = case.by_kernel(cuts), case.by_reference()
    assert good and well
    assert torch.equal(ours, wanted)  # the same sums in the same order, however the range is cut
    if case.rounded:
        return
    weights = torch.from_numpy(case.composition.weights).double()
    exact = case.base.double() * case.composition.base + weights @ formula(case)  # type: ignore[operator]
    tolerance = 1e-2 if case.out == BF16 else 1e-5
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance * float(1 + exact.abs().max()) / 10)


@settings(max_examples=150, deadline=None)
@given(case=cases(linear=True))
def test_derivatives_are_those_of_the_formula(case: Case) -> None:
    if case.rounded:
        return
    found = case.products()
    wanted = composed_reference.products(case.grad, case.base, case.experts, case.packed)
    each = formula(case)
    slope, base = case.grad.double(), case.base.double()
    exact = [*(each @ slope).tolist(), float(slope @ base), float(slope @ slope)]
    largest = max(each.abs().max(), base.abs().max())
    scale = float(1 + largest * slope.abs().sum())
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6 * scale)
    np.testing.assert_allclose(wanted, exact, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("until", [0.0, 0.3, 1.0])
def test_of_entries_that_vary_equally_the_share_stays_that_is_asked_for(until: float) -> None:
    size, apart = 3 * kernel.CHUNK + 5, torch.tensor([0.0, 1.0, 2.0, 3.0])
    far = apart[torch.randint(0, 4, (size,), generator=torch.Generator().manual_seed(0))]
    experts: list[Source | None] = [Source(far), Source(-far), Source(far), Source(-far)]  # of variance far ** 2
    base, weights = torch.zeros(size), np.array([1, 0, 0, 0], dtype="f4")
    case = Case(Composition(0.0, weights, spread=4.0, until=until, key=3), base, experts, base, F32)
    found, _ = case.by_kernel([100, kernel.CHUNK + 1])
    assert torch.equal(found, case.by_reference()[0])
    shares = [float((found[far == a] == a).float().mean()) for a in (2.0, 3.0)]
    assert shares == [pytest.approx(until, abs=0.04 if 0 < until < 1 else 0), 1.0] and not found[far < 2].any()


def example(consensus: str = "none", size: int = 50_000, experts: int = 5, **options: object) -> Case:
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(size, generator=draw)
    found: list[Source | None] = [Source(base + torch.randn(size, generator=draw)) for _ in range(experts)]
    weights = np.linspace(-0.5, 1, experts, dtype=np.float32)
    grad = torch.randn(size, generator=draw)
    return Case(Composition(1.0, weights, consensus=consensus, **options), base, found, grad, F32)  # type: ignore[arg-type]


@pytest.mark.parametrize("consensus", ["none", "weighted", "equal", "largest", "shared"])
@pytest.mark.parametrize("experts", [4, 5, 8, 9, 40])
def test_the_same_bits_whatever_the_threads_and_slices(consensus: str, experts: int) -> None:
    keep = tuple(Keep(least=0.1, share=0.4, key=k) for k in range(experts))
    case = example(consensus, experts=experts, keeps=keep, threshold=0.4, spread=0.3, divisors=np.ones(experts, "f4"))
    whole, _ = case.by_kernel()
    with ThreadPoolExecutor(3) as pool:
        side_by_side, _ = case.by_kernel(range(1000, 50_000, 777), pool.map)
    assert torch.equal(whole, side_by_side)
    assert torch.equal(whole, case.by_reference()[0])


def test_what_a_merge_does_not_need_is_not_read() -> None:
    for consensus, read in (("none", [0, 2]), ("weighted", [0, 2]), ("equal", [0, 1, 2]), ("largest", [0, 1, 2])):
        case = example(consensus, experts=3)
        case = replace(case, composition=replace(case.composition, weights=np.array([1, 0, 2], dtype="f4")))
        assert case.packed.active.tolist() == read
        without = [e if k in read else Source(torch.full_like(case.base, math.nan)) for k, e in enumerate(case.experts)]
        assert torch.equal(case.by_kernel()[0], replace(case, experts=without).by_kernel()[0])
    votes = example("equal", experts=3, spread=1e-9)
    spoiled = replace(votes, experts=[*votes.experts[:2], Source(-1e3 * torch.ones_like(votes.base))])
    zero = np.array([1, 1, 0], dtype="f4")
    pair = [replace(c, composition=replace(c.composition, weights=zero)) for c in (votes, spoiled)]
    assert not torch.equal(pair[0].by_kernel()[0], pair[1].by_kernel()[0])  # a weight of 0 has its vote all the same


@pytest.mark.parametrize("consensus", ["none", "weighted", "equal", "largest", "shared"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("experts", [3, 6])
def test_what_is_not_finite_is_seen(consensus: str, wrong: float, experts: int) -> None:
    for at in (0, 4999):
        for k in range(experts):
            case = example(consensus, 5000, experts, threshold=0.4, keeps=(Keep(least=0.01),) * experts)
            assert case.by_kernel()[1] and case.by_reference()[1]
            spoiled = case.experts[k]
            assert spoiled is not None
            spoiled.tensor[at] = wrong
            if consensus != "largest":
                case = replace(case, composition=replace(case.composition, weights=np.ones(experts, "f4")))
            elif not case.composition.weights[k]:
                continue
            # an infinity is in no mask but its own, and what is in one mask is nobody's
            nobody = consensus == "shared" and math.isinf(wrong)
            assert case.by_kernel()[1] == case.by_reference()[1] == nobody


@pytest.mark.parametrize("out", [F32, BF16])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("shape", [(7, 31), (300, 40), (1, 5000), (5000, 1), (3, 4, 500), (6,)])
def test_weights_by_row_and_by_column(shape: tuple[int, ...], columns: bool, out: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(1)
    size, count = math.prod(shape), 3
    others = shape[1:] if columns else shape[:-1]
    base, *rest = (torch.randn(size, generator=draw).to(BF16 if k == 1 else F32) for k in range(4))
    experts: list[Source | None] = [Source(rest[0]), Source(rest[1], True), None]
    weights = torch.randn(math.prod(others), count, generator=draw)
    bases = torch.randn(math.prod(others), generator=draw)
    composition = Composition(bases.numpy(), weights.numpy(), columns=columns)
    case = Case(composition, base, experts, base, out)
    packed = Packed.of(composition, shape)
    found, wanted = torch.empty(size, dtype=out), torch.empty(size, dtype=out)
    for start, stop in ((0, size // 3), (size // 3, size)):
        assert composed.merge(
            packed, base.data_ptr(), 0, case.addresses, case.codes, found.data_ptr(), kernel.CODES[out], start, stop
        )
    assert composed_reference.merge(wanted, base, experts, packed)
    assert torch.equal(found, wanted)
    left = "abc"[: len(shape)]
    line = left[1:] if columns else left[:-1]
    raw = case.task_vectors().view(count, *shape)
    exact = torch.einsum(f"{left},{line}->{left}", base.double().view(shape), bases.double().view(others))
    exact += torch.einsum(f"k{left},{line}k->{left}", raw, weights.double().view(*others, count))
    tolerance = 1e-2 if out == BF16 else 1e-5
    torch.testing.assert_close(found.view(shape).double(), exact, rtol=tolerance, atol=tolerance)
    with pytest.raises(ValueError, match="no coefficient gradient"):
        composed.products(packed, 0, 0, case.addresses, case.codes, 0, 0, 0, size, np.empty(5))


def test_signs_elected_by_weights_have_no_gradient() -> None:
    case = example("weighted", 10)
    with pytest.raises(ValueError, match="no coefficient gradient"):
        case.products()
    with pytest.raises(ValueError, match="no coefficient gradient"):
        composed_reference.products(case.grad, case.base, case.experts, case.packed)


LAGS = (1, 2, 3, 4, 7, 8, 64, 384, 768, 1024, 3072, 4096, 8192, 16384, 65536, 1 << 18)
"""Places apart: of neighbours in a row, and of rows of common lengths."""


def test_random_masks_are_fair() -> None:
    count = 1 << 21
    for key in (0, 1, 2, 0x80000000, 0xFFFFFFFF, 123456789):
        found = draws(key, 0, count).double() / UNIT
        assert found.min() >= 0 and found.max() < 1
        cells = torch.bincount((found * 4096).long(), minlength=4096).double()
        spread = float(((cells - count / 4096) ** 2).sum() / (count / 4096))  # chi squared, 4095 degrees of freedom
        assert abs(spread - 4095) < 4.5 * math.sqrt(2 * 4095)
        for p in (0.01, 0.1, 0.5, 0.9):
            kept = found < p
            assert abs(int(kept.sum()) / count - p) < 4.5 * math.sqrt(p * (1 - p) / count)
            for lag in LAGS:
                both = int((kept[:-lag] & kept[lag:]).sum()) / (count - lag)
                error = math.sqrt((p**2 * (1 - p**2) + 2 * p**3 * (1 - p)) / (count - lag))
                assert abs(both - p**2) < 4.5 * error, (key, p, lag)


def test_random_masks_of_different_keys_are_independent() -> None:
    count = 1 << 21
    found = {key: draws(key, 0, count).double() / UNIT for key in (0, 1, 2, 3, 1 << 16, 1 << 31, 0xFFFFFFFF, 123456789)}
    for i, one in found.items():
        for j, other in found.items():
            if i < j:
                for shift in (0, 1, 1024):
                    product = (one - 0.5) * (other.roll(shift) - 0.5)
                    assert abs(float(product.mean())) * 12 < 4.5 / math.sqrt(count), (i, j)
                assert int((one == other).sum()) < 10


def test_random_masks_are_nested_and_a_function_of_place_and_key_alone() -> None:
    whole = draws(7, 0, 10_000)
    assert torch.equal(whole[3000:5000], draws(7, 3000, 5000))
    assert torch.equal(whole, draws(7 + (1 << 32), 0, 10_000))  # 32 bits of a key count
    near = draws(7, (1 << 32) - 500, (1 << 32) + 500)
    assert torch.equal(near[500:], draws(7, 1 << 32, (1 << 32) + 500))
    assert (near[500:] == whole[:500]).sum() < 5  # the places' upper bits count
    case = example(size=4000, experts=1)
    before = torch.zeros(4000, dtype=torch.bool)
    for share in (0.0, 0.1, 0.1001, 0.5, 0.99, 1.0):
        keep = (Keep(share=share, key=3),)
        moved = replace(case, composition=Composition(0.0, np.ones(1, "f4"), keep)).by_kernel()[0] != 0
        assert torch.equal(moved, draws(3, 0, 4000) < share * UNIT)
        assert bool((moved | ~before).all())
        before = moved
    assert bool(before.all())


def test_draws_go_on_beyond_32_bits_of_places() -> None:
    size, start = 3000, (1 << 32) - 1234
    base, one = torch.zeros(size), torch.ones(size)
    packed = Packed.of(Composition(1.0, np.ones(1, "f4"), (Keep(share=0.5, key=9),)), (size,))
    out, wanted = torch.empty(size), torch.empty(size)

    def place(tensor: torch.Tensor) -> int:
        return tensor.data_ptr() - 4 * start

    composed.merge(
        packed, place(base), 0, np.array([place(one)]), np.zeros(1, "i8"), place(out), 0, start, start + size
    )
    composed_reference.merge(wanted, base, [Source(one)], packed, start)
    assert torch.equal(out, wanted)
    assert torch.equal(out != 0, draws(9, start, start + size) < UNIT // 2)


def test_what_is_no_composition_of_a_tensor_is_refused() -> None:
    ones, two = np.ones(2, "f4"), np.ones((4, 2), "f4")
    ranks = torch.zeros(11, dtype=torch.uint8)
    for composition, said in (
        (Composition(1.0, two), "not by row"),
        (Composition(np.ones(4, "f4"), two, columns=True), "not by column"),
        (Composition(np.ones(4, "f4"), two, scale=2.0), "as they are"),
        (Composition(np.ones(4, "f4"), two, consensus="equal"), "as they are"),
        (Composition(np.ones(4, "f4"), ones), "one number"),
        (Composition(1.0, ones, (Keep(),)), "of the 2 experts"),
        (Composition(1.0, ones, divisors=np.ones(3, "f4")), "of the 2 experts"),
        (Composition(1.0, ones, (Keep(), Keep(ranks=ranks))), r"uint8 \(12,\)"),
        (Composition(1.0, ones, (Keep(), Keep(ranks=torch.zeros(12)))), "uint8"),
        (Composition(1.0, ones, (Keep(), Keep(ranks=torch.zeros(24, dtype=torch.uint8)[::2]))), "gaps"),
    ):
        with pytest.raises(ValueError, match=said):
            Packed.of(composition, (4, 3))


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_processed_task_vectors_merge_as_experts_do(dtype: torch.dtype, count: int) -> None:
    draw = torch.Generator().manual_seed(count)
    size = kernel.CHUNK + 33
    base, grad = torch.randn(size, generator=draw), torch.randn(size, generator=draw)
    task_vectors = [torch.randn(size, generator=draw).to(dtype) for _ in range(count)]
    code = kernel.DIFFERENCE if dtype == F32 else kernel.HALF_DIFFERENCE
    addresses, codes = np.array([t.data_ptr() for t in task_vectors]), np.full(count, code)
    scales = torch.randn(count, generator=draw).numpy()
    out, zero = torch.empty(size), torch.zeros(size)
    assert kernel.merge(base.data_ptr(), 0, addresses, codes, np.float32(1), scales, out.data_ptr(), 0, 0, size)
    total = base.clone()
    for scale, task_vector in zip(scales.tolist(), task_vectors, strict=True):
        total += task_vector.float() * scale
    assert torch.equal(out, total)
    found, of_zero = np.empty(count + 2), np.empty(count + 2)
    kernel.products(base.data_ptr(), 0, addresses, codes, grad.data_ptr(), 0, 0, size, found)
    exact = [float(grad.double() @ t.double()) for t in task_vectors]
    np.testing.assert_allclose(found[:-2], exact, rtol=1e-5, atol=1e-3)
    # bit for bit what experts of a base of zeros are
    kernel.products(zero.data_ptr(), 0, addresses, codes - 2, grad.data_ptr(), 0, 0, size, of_zero)
    assert np.array_equal(found[:-2], of_zero[:-2])
    assert found[-2:].tolist() == pytest.approx(
        [float(grad.double() @ base.double()), float(grad.double() @ grad.double())]
    )

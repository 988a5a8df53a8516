"""Is the number of a rank the one that sorting finds, in a stream of any cut?"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from searchspaces.algebra.quantiles import CHUNK, ranked, task_vectors

NUMBERS = st.floats(-(2.0**90), 2.0**90, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40])


@settings(max_examples=80)
@given(
    rows=st.integers(1, 60).flatmap(lambda n: st.lists(st.lists(NUMBERS, min_size=n, max_size=n), min_size=1)),
    cut=st.integers(0, 60),
    share=st.floats(0, 1, exclude_max=True),
)
def test_ranks_are_those_of_sorting(rows: list[list[float]], cut: int, share: float) -> None:
    whole = torch.tensor(rows)
    parts = [list(p) for p in (whole[:, :cut], whole[:, cut:]) if p.shape[1]]
    found = ranked(lambda: parts, lambda n: [int(share * n), 0, n - 1])
    ordered = whole.sort(dim=1).values
    count = whole.shape[1]
    for row, places in zip(ordered, found, strict=True):
        for i, (number, before, equal) in zip((int(share * count), 0, count - 1), places, strict=True):
            assert number == float(row[i])
            # -0 lies before 0, and equals it
            if number:
                same = [j for j in range(count) if row[j] == number]
                assert (equal, before) == (len(same), i - same[0])
            assert 0 <= before < equal <= count


def test_task_vectors_come_in_parts_of_every_tensor() -> None:
    first, second = torch.ones(CHUNK + 5, dtype=torch.bfloat16), torch.full((2, 3), 2.0)
    tensors = [("a", first, {"x": first * 3, "y": first}), ("b", second, {"x": second, "y": second + 1})]
    parts = list(task_vectors(tensors))
    assert [[len(p) for p in row] for row in parts] == [[CHUNK, CHUNK], [5, 5], [6, 6]]
    assert all(p.dtype == torch.float32 for row in parts for p in row)
    assert [[float(p[0]) for p in row] for row in parts] == [[2, 0], [2, 0], [0, 1]]

"""Are singular directions and orthonormal factors what a full decomposition in float64 says, whatever the matrix?"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from searchspaces.algebra import spectral
from searchspaces.algebra.spectral import directions, gram, noise, polar

SHAPES = pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32), (1, 9), (9, 1), (500, 6)])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def eye(columns: torch.Tensor) -> None:
    """Columns are orthonormal."""
    torch.testing.assert_close(columns.T @ columns, torch.eye(columns.shape[1]), rtol=0, atol=1e-5)


@SHAPES
def test_directions_are_those_of_the_singular_value_decomposition(shape: tuple[int, int]) -> None:
    matrix = normal(*shape)
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    left, sizes, right = directions(matrix, 0.0)
    torch.testing.assert_close(sizes, s, rtol=1e-6, atol=0)
    eye(left)
    eye(right)
    torch.testing.assert_close((left * sizes.float()) @ right.T, matrix, rtol=1e-5, atol=2e-6)
    few = directions(matrix, 0.0, 3)
    torch.testing.assert_close(
        (few.left * few.sizes.float()) @ few.right.T, ((u[:, :3] * s[:3]) @ v[:3]).float(), rtol=1e-5, atol=2e-6
    )


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_what_is_rounding_is_no_direction(rank: int) -> None:
    base, delta = normal(60, 40, seed=1), 1e-3 * normal(60, rank, seed=2) @ normal(rank, 40, seed=3)
    found = (base + delta) - base  # rounded to the base's float32
    assert len(directions(found, noise(base, [found])).sizes) == rank
    assert len(directions(found, 0.0).sizes) > rank or rank == 0


def test_small_singular_values_keep_their_directions_orthonormal() -> None:
    sizes = torch.logspace(0, -6, 30)
    u, v = (torch.linalg.qr(normal(50, 30, seed=s).double()).Q for s in (1, 2))
    matrix = ((u * sizes.double()) @ v.T).float()
    found = directions(matrix, 0.0)
    assert len(found.sizes) >= 29
    eye(found.left)
    eye(found.right)


@SHAPES
def test_the_polar_factor_is_that_of_the_decomposition(shape: tuple[int, int]) -> None:
    columns = normal(*shape)
    columns = columns / torch.linalg.vector_norm(columns, dim=0)
    u, _, v = torch.linalg.svd(columns.double(), full_matrices=False)
    torch.testing.assert_close(polar(columns), (u @ v).float(), rtol=1e-5, atol=1e-5)


def test_equal_columns_share_a_direction_and_none_are_none() -> None:
    one = torch.zeros(5, 1)
    one[2] = -1.0
    torch.testing.assert_close(polar(torch.cat([one, one], dim=1)), torch.cat([one, one], dim=1) / 2**0.5)
    assert polar(torch.zeros(5, 0)).shape == (5, 0)
    assert torch.equal(polar(torch.zeros(5, 2)), torch.zeros(5, 2))


@pytest.mark.parametrize("apart", [1e-2, 4e-4, 1e-5])
def test_columns_that_are_nearly_one_are_taken_apart(apart: float) -> None:
    x, y, z = torch.linalg.qr(normal(50, 3)).Q.unbind(1)
    columns = torch.stack([x, x + apart * y, z], dim=1)
    columns = columns / torch.linalg.vector_norm(columns, dim=0)
    u, _, v = torch.linalg.svd(columns.double(), full_matrices=False)
    found = polar(columns)
    eye(found)
    torch.testing.assert_close(found, (u @ v).float(), rtol=1e-5, atol=1e-5)


def test_what_rounding_alone_takes_apart_is_one_direction() -> None:
    one = normal(64, 1) / torch.linalg.vector_norm(normal(64, 1))
    near = torch.cat([one, torch.nextafter(one, torch.zeros(()))], dim=1)
    assert not torch.equal(near[:, 0], near[:, 1])
    torch.testing.assert_close(polar(near), near / 2**0.5, rtol=1e-5, atol=1e-6)


def test_blocks_of_rows_give_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = normal(37, 8)
    whole = directions(matrix, 0.0)
    monkeypatch.setattr(spectral, "BLOCK", 40)
    torch.testing.assert_close(gram(matrix), matrix.double().T @ matrix.double())
    torch.testing.assert_close(directions(matrix, 0.0).sizes, whole.sizes)


DIGEST = """
import hashlib, sys, torch
from searchspaces.given import Given
from searchspaces.methods.tsv_m import TsvM
torch.set_num_threads(int(sys.argv[1]))
draw = torch.Generator().manual_seed(0)
base = torch.randn(300, 200, generator=draw)
experts = {f"e{k}": base + 0.01 * torch.randn(300, 200, generator=draw) for k in range(3)}
kept = torch.stack(list(TsvM({"lambda": 1.0, "share": 1.0}).process(Given("w", base, experts))))
print(hashlib.sha256(kept.numpy().tobytes()).hexdigest(), *kept.flatten()[::997].tolist())
"""


def test_another_process_finds_the_same_bits_and_other_threads_the_same_numbers() -> None:
    def said(threads: int) -> tuple[str, torch.Tensor]:
        command = [sys.executable, "-c", DIGEST, str(threads)]
        words = subprocess.run(command, env=dict(os.environ), check=True, capture_output=True, text=True).stdout.split()
        return words[0], torch.tensor([float(w) for w in words[1:]])

    (one, numbers), (again, _), (_, other) = said(1), said(1), said(2)
    assert one == again
    torch.testing.assert_close(other, numbers, rtol=1e-5, atol=1e-6 * float(numbers.abs().max()))

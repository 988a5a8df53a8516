"""Are the metrics and their standard errors what other people's code and simulation say?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score

from evaluators.evaluator import Measure
from evaluators.metrics import macro_f1, mean, perplexity, token_loss


def test_mean_and_its_standard_error() -> None:
    x = np.array([1.0, 0, 0, 1, 1], dtype=np.float32)
    found = mean(x)
    assert found.value == pytest.approx(0.6)
    assert found.stderr == pytest.approx(np.std([1, 0, 0, 1, 1], ddof=1) / math.sqrt(5)) and found.count == 5
    assert mean(np.array([0.5])).stderr is None
    assert macro_f1(np.array([1]), np.array([1]), 2) == Measure(1.0, None, 1)


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_is_that_of_scikit_learn(seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth, predicted = draw.integers(0, 6, 40), draw.integers(1, 7, 40)  # class 7 never occurs
    assert macro_f1(truth, predicted, 8).value == pytest.approx(f1_score(truth, predicted, average="macro"))


def test_macro_f1_standard_error_is_what_repeated_samples_show() -> None:
    draw = np.random.default_rng(0)

    def sample() -> tuple[np.ndarray, np.ndarray]:
        truth = draw.choice(3, size=200, p=[0.6, 0.3, 0.1])
        return truth, np.where(draw.random(200) < 0.75, truth, draw.integers(0, 3, 200))

    found = [macro_f1(*sample(), 3) for _ in range(200)]
    assert np.mean([m.stderr for m in found]) == pytest.approx(np.std([m.value for m in found]), rel=0.2)
    assert macro_f1(np.arange(3), np.arange(3), 3).value == 1.0


def test_macro_f1_is_the_same_to_the_bit_each_time_and_for_many_classes() -> None:
    draw = np.random.default_rng(0)
    truth, predicted = draw.integers(0, 1000, 3000), draw.integers(0, 1000, 3000)
    assert macro_f1(truth, predicted, 1000) == macro_f1(truth, predicted, 1000)


def test_token_loss_standard_error_is_what_repeated_samples_show() -> None:
    draw = np.random.default_rng(0)

    def sample() -> tuple[np.ndarray, np.ndarray]:
        tokens = draw.integers(5, 60, 150)
        level = draw.normal(3, 0.5, 150)  # tokens of a document share their difficulty
        return level * tokens, tokens

    found = [token_loss(*sample()) for _ in range(300)]
    assert np.mean([m.stderr for m in found]) == pytest.approx(np.std([m.value for m in found]), rel=0.15)
    nll, tokens = sample()
    assert token_loss(nll, tokens).value == pytest.approx(nll.sum() / tokens.sum())
    assert token_loss(nll[:1], tokens[:1]).stderr is None
    assert perplexity(token_loss(nll[:1], tokens[:1])).stderr is None


def test_perplexity_by_the_delta_method() -> None:
    loss = token_loss(np.array([10.0, 22.0]), np.array([5, 10]))
    found = perplexity(loss)
    assert found.value == pytest.approx(math.exp(32 / 15))
    assert found.stderr == pytest.approx(found.value * loss.stderr)
    assert perplexity(mean(np.array([1e4]))).value == math.inf

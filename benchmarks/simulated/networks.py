"""How do merges of trained networks behave? Residual MLPs: a base trained on a mixture, and an expert for each task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.simulated.merge import Array, Merge

OUTPUTS = 4
BASE_STEPS, BASE_RATE, BASE_ITEMS = 500, 3e-3, 64  # items a task and step
EXPERT_STEPS, EXPERT_RATE, EXPERT_ITEMS = 350, 1.5e-3, 128
BETAS = (0.9, 0.99)


@dataclass(frozen=True, eq=False)
class Network:
    """`h_0 = x E`, `h_(g+1) = h_g + 2 / sqrt(G) tanh(h_g W_g)`, `y = h_G H`; the layers W are what is trained.

    Leading axes of inputs and layers broadcast: many networks, or many sets of items, are one call.
    """

    embedding: Array  # (inputs, width), E
    head: Array  # (width, OUTPUTS), H

    def outputs(
        self,
        layers: Array,  # (..., G, width, width)
        inputs: Array,  # (..., n, inputs)
    ) -> Array:
        """`(..., n, OUTPUTS)`."""
        hidden, scale = inputs @ self.embedding, 2 / np.sqrt(layers.shape[-3])
        for g in range(layers.shape[-3]):
            hidden = hidden + scale * np.tanh(hidden @ layers[..., g, :, :])
        return np.asarray(hidden @ self.head)

    def slopes(self, layers: Array, inputs: Array, targets: Array) -> tuple[Array, Array]:
        """Mean squared errors `(...)`, and their derivatives by the layers `(..., G, width, width)`."""
        count, scale = layers.shape[-3], 2 / np.sqrt(layers.shape[-3])
        hidden, bends = [inputs @ self.embedding], []
        for g in range(count):
            bends.append(np.tanh(hidden[g] @ layers[..., g, :, :]))
            hidden.append(hidden[g] + scale * bends[g])
        errors = hidden[count] @ self.head - targets
        back = 2 * errors / (errors.shape[-2] * errors.shape[-1]) @ self.head.T
        found = np.empty((*errors.shape[:-2], *layers.shape[-3:]))
        for g in reversed(range(count)):
            inner = back * scale * (1 - bends[g] ** 2)
            found[..., g, :, :] = hidden[g].swapaxes(-1, -2) @ inner
            back = back + inner @ layers[..., g, :, :].swapaxes(-1, -2)
        return np.mean(errors**2, axis=(-2, -1)), found

    def trained(
        self,
        layers: Array,  # (..., G, width, width)
        inputs: Array,  # (steps, ..., n, inputs)
        targets: Array,  # (steps, ..., n, OUTPUTS)
        rate: float,
    ) -> Array:
        """The layers after one step of Adam for each set of items."""
        mean, square = np.zeros_like(layers), np.zeros_like(layers)
        for step, (x, y) in enumerate(zip(inputs, targets, strict=True), start=1):
            _, slope = self.slopes(layers, x, y)
            mean = BETAS[0] * mean + (1 - BETAS[0]) * slope
            square = BETAS[1] * square + (1 - BETAS[1]) * slope**2
            size = np.sqrt(square / (1 - BETAS[1] ** step)) + 1e-8
            layers = layers - rate * (mean / (1 - BETAS[0] ** step)) / size
        return layers


@dataclass(frozen=True, eq=False)
class Calibration:
    """The tasks: mean squared errors on items of each, which no network was trained on."""

    network: Network
    inputs: Array  # (T, n, inputs)
    targets: Array  # (T, n, OUTPUTS)

    def losses(self, weights: Array, coefficients: Array) -> Array:
        found = self.network.outputs(self._layers(weights), self.inputs)
        return np.asarray(np.mean((found - self.targets) ** 2, axis=(-2, -1)))

    def slopes(self, weights: Array, coefficients: Array) -> tuple[Array, Array, Array]:
        losses, found = self.network.slopes(self._layers(weights), self.inputs, self.targets)
        return losses, found.reshape(len(losses), *weights.shape), np.zeros((len(losses), *coefficients.shape))

    def _layers(self, weights: Array) -> Array:
        width = len(self.network.head)
        return weights.reshape(-1, width, width)


def networks(experts: int, layers: int, seed: int, items: int = 256, width: int = 20, inputs: int = 12) -> Merge:
    """Trains a base and its experts, all at once where they do not wait for each other, in a few seconds.

    Task k is what a network of random layers `T_k = T + noise` answers to inputs around a place of its own. The base
    learns what the network of layers T answers to inputs of all tasks, and expert k, from the base, task k.
    """
    rng = np.random.default_rng(seed)
    block = (layers, width, width)
    network = Network(
        rng.normal(size=(inputs, width)) / np.sqrt(inputs), rng.normal(size=(width, OUTPUTS)) / np.sqrt(width)
    )
    shared = rng.normal(size=block) / np.sqrt(width) * 1.5
    truths = shared + rng.normal(size=(experts, *block)) / np.sqrt(width) * 0.7
    places = (rng.normal(size=(experts, inputs)) * 0.6)[:, None]
    begun = rng.normal(size=block) / np.sqrt(width) * 0.5

    mixed = (rng.normal(size=(BASE_STEPS, experts, BASE_ITEMS, inputs)) + places).reshape(BASE_STEPS, -1, inputs)
    base = network.trained(begun, mixed, network.outputs(shared, mixed), BASE_RATE)
    own = rng.normal(size=(experts, EXPERT_STEPS, EXPERT_ITEMS, inputs)).swapaxes(0, 1) + places
    tuned = network.trained(np.array([base] * experts), own, network.outputs(truths, own), EXPERT_RATE)

    held = np.random.default_rng(seed + 777).normal(size=(experts, items, inputs)) + places
    deltas = (tuned - base).reshape(experts, layers, -1).swapaxes(0, 1).copy()
    return Merge(base.reshape(layers, -1), deltas, Calibration(network, held, network.outputs(truths, held)))

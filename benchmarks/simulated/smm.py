"""What does SMM-Bench say of a merge? Its surrogate of layer-wise weights, as a problem that drivers are compared on.

SMM-Bench-PS (Akizuki et al. 2025, arXiv:2509.02555; github.com/shiralab/SMM-Bench) foretells the accuracy of a merge of
two language models of 32 layers by 64 weights in [0, 1]: boosted trees, whose folds are averaged. Its files are the
authors' to give; `SMM_BENCH` names the folder of `train_acc_ja_best_model.json`, and `pip install lightgbm` reads it:

    export SMM_BENCH=surrogate/smm-bench-ps
    python benchmarks/search.py --problems --problem-from benchmarks.simulated.smm:by_layer

`by_model` is for files whose `label.json` lists the weights of all layers of one model before those of the other. The
loss is what is missing to an accuracy of 1, in units of what the merge of weights 0 lacks. Trees are flat between
their steps: drivers that ask for gradients have none here. The same benchmark in data flow space (which layer comes
next) is no merge of weights, and has no place here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.simulated.merge import Array

LAYERS, MODELS = 32, 2
FILE = "train_acc_ja_best_model.json"
Surrogate = tuple[tuple[int, int], Callable[[Array], Array]]


def by_layer() -> Surrogate:
    """Weights listed layer by layer, both models of each."""
    return surrogate(os.environ.get("SMM_BENCH", "."), np.arange(LAYERS * MODELS))


def by_model() -> Surrogate:
    """Weights listed model by model, all layers of each."""
    return surrogate(os.environ.get("SMM_BENCH", "."), np.arange(LAYERS * MODELS).reshape(LAYERS, MODELS).T.ravel())


def surrogate(
    folder: str,
    order: np.ndarray[tuple[int], np.dtype[np.int64]],  # (64,): column i of the files is that coordinate of a point
) -> Surrogate:
    """The shape (32, 2), and the loss `(1,)` of a point `(64,)`. Raises ValueError where the file cannot be used."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise ValueError(f"no file {path}; set SMM_BENCH to the folder of SMM-Bench-PS that holds {FILE}")
    try:
        import lightgbm
    except ImportError as error:
        raise ValueError(f"{path} is read by lightgbm ({error}); pip install 'mergeopt[surrogates]'") from error
    try:
        folds = lightgbm.CVBooster(model_file=path)
        columns = {int(fold.num_feature()) for fold in folds.boosters}
    except (KeyError, TypeError, ValueError, lightgbm.basic.LightGBMError) as error:
        raise ValueError(f"{path}: expected a CVBooster of lightgbm, got {error!r:.200}; fetch it anew") from error
    if columns != {len(order)}:
        raise ValueError(f"{path}: expected trees over {len(order)} weights, got {sorted(columns)}; take SMM-Bench-PS")

    def accuracy(point: Array) -> float:
        return float(np.clip(np.mean(folds.predict(point[None, order])), 0.0, 1.0))

    lacking = 1.0 - accuracy(np.zeros(len(order)))
    if lacking <= 0:
        raise ValueError(f"{path}: weights of 0 have an accuracy of 1 already; there is nothing to search")
    return (LAYERS, MODELS), lambda point: np.array([(1.0 - accuracy(point)) / lacking])

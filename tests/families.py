"""Pico models of many architectures: one row a family, each a config of a few thousand parameters and its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf

WORDS = 40  # rows of every vocabulary
TEXT: dict[str, Any] = {"vocab_size": WORDS, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SMALL = {**TEXT, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
GROUPED = {**SMALL, "num_key_value_heads": 1, "max_position_embeddings": 32}
SEEN: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8,
    "patch_size": 4, "num_channels": 1,
}  # fmt: skip
MIXED = {**GROUPED, "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}
HEADS = {"num_heads": 2, "num_layers": 2, "d_model": 16, "d_kv": 8, "d_ff": 24}


@dataclass(frozen=True)
class Family:
    """One architecture: how its model is made, what it reads, and its groups at granularity `layer`.

    `layers` are the groups that are not embeddings; `modules` those of the last block at granularity `module`.
    """

    model: str
    config: Callable[[], Any]
    layers: tuple[str, ...]
    modules: tuple[str, ...] = ("attention", "mlp", "norm")
    reads: str = "tokens"

    def save(self, folder: Path, seed: int = 0) -> Path:
        """A base checkpoint, as transformers saves it."""
        torch.manual_seed(seed)
        model = getattr(hf, self.model)(self.config())
        for parameter in model.parameters():  # experts and tokens that nothing initialises would be all alike
            torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
        model.save_pretrained(folder)
        return folder

    def inputs(self) -> Mapping[str, torch.Tensor]:
        """A batch of two."""
        draw = torch.Generator().manual_seed(0)
        tokens = torch.randint(3, WORDS, (2, 6), generator=draw)
        pixels = torch.randn(2, 1, 8, 8, generator=draw)
        return {
            "tokens": {"input_ids": tokens},
            "pairs": {"input_ids": tokens, "decoder_input_ids": tokens.flip(1)},
            "images": {"pixel_values": pixels},
            "codes": {"input_ids": tokens.repeat_interleave(2, 0)},  # of two books a sequence
            "both": {"input_ids": tokens, "pixel_values": pixels},
        }[self.reads]


def _decoder(prefix: str = "model.layers", *rest: str) -> tuple[str, ...]:
    return (f"{prefix}.0", f"{prefix}.1", *(rest or ("lm_head", "model.norm")))


ROUTED = ("attention", "mlp", "norm", "router")

FAMILIES = {
    "llama": Family("LlamaForCausalLM", lambda: hf.LlamaConfig(**GROUPED), _decoder()),
    "llama-tied": Family(
        "LlamaForCausalLM", lambda: hf.LlamaConfig(**GROUPED, tie_word_embeddings=True),
        _decoder("model.layers", "model.norm"),
    ),
    "mistral": Family("MistralForCausalLM", lambda: hf.MistralConfig(**GROUPED), _decoder()),
    "qwen2": Family("Qwen2ForCausalLM", lambda: hf.Qwen2Config(**GROUPED), _decoder()),
    "qwen3": Family("Qwen3ForCausalLM", lambda: hf.Qwen3Config(**GROUPED, head_dim=8), _decoder()),
    "gemma2": Family(
        "Gemma2ForCausalLM", lambda: hf.Gemma2Config(**GROUPED, head_dim=8), _decoder("model.layers", "model.norm")
    ),
    "gemma3": Family(
        "Gemma3ForCausalLM", lambda: hf.Gemma3TextConfig(**GROUPED, head_dim=8), _decoder("model.layers", "model.norm")
    ),
    "gpt2": Family(
        "GPT2LMHeadModel", lambda: hf.GPT2Config(**TEXT, n_embd=16, n_layer=2, n_head=2, n_positions=32),
        _decoder("transformer.h", "transformer.ln_f"),
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM", lambda: hf.GPTNeoXConfig(**SMALL, max_position_embeddings=32),
        _decoder("gpt_neox.layers", "gpt_neox.final_layer_norm"),
    ),
    "phi": Family(
        "PhiForCausalLM", lambda: hf.PhiConfig(**GROUPED), _decoder("model.layers", "lm_head", "model.final_layernorm")
    ),
    "phi3": Family("Phi3ForCausalLM", lambda: hf.Phi3Config(**GROUPED), _decoder()),
    "mixtral": Family(
        "MixtralForCausalLM", lambda: hf.MixtralConfig(**GROUPED, num_local_experts=4), _decoder(), ROUTED
    ),
    "qwen2_moe": Family(
        "Qwen2MoeForCausalLM", lambda: hf.Qwen2MoeConfig(**MIXED, shared_expert_intermediate_size=8), _decoder(), ROUTED
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM", lambda: hf.Qwen3MoeConfig(**MIXED, head_dim=8), _decoder(), ROUTED
    ),
    "olmoe": Family("OlmoeForCausalLM", lambda: hf.OlmoeConfig(**MIXED), _decoder(), ROUTED),
    "granitemoe": Family(
        "GraniteMoeForCausalLM", lambda: hf.GraniteMoeConfig(**GROUPED, num_local_experts=4),
        _decoder(), ROUTED,
    ),
    "deepseek_v3": Family(
        "DeepseekV3ForCausalLM",
        lambda: hf.DeepseekV3Config(
            **{**GROUPED, "num_key_value_heads": 2}, moe_intermediate_size=8, n_routed_experts=4, n_shared_experts=1,
            num_experts_per_tok=2, n_group=2, topk_group=1, first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8,
            qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
        ),
        _decoder(), ROUTED,
    ),
    "t5": Family(
        "T5ForConditionalGeneration", lambda: hf.T5Config(**TEXT, **HEADS, decoder_start_token_id=0),
        (
            "decoder.block.0", "decoder.block.1", "encoder.block.0", "encoder.block.1",
            "decoder.final_layer_norm", "encoder.final_layer_norm",
        ),
        reads="pairs",
    ),
    "bart": Family(
        "BartForConditionalGeneration",
        lambda: hf.BartConfig(
            **TEXT, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=24, decoder_ffn_dim=24,
            encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=32, decoder_start_token_id=0,
        ),
        ("model.decoder.layers.0", "model.encoder.layers.0", "final_logits_bias"), reads="pairs",
    ),
    "bert": Family(
        "BertForMaskedLM", lambda: hf.BertConfig(**SMALL, max_position_embeddings=32),
        _decoder("bert.encoder.layer", "cls"),
    ),
    "roberta": Family(
        "RobertaForMaskedLM", lambda: hf.RobertaConfig(**SMALL, max_position_embeddings=32),
        _decoder("roberta.encoder.layer", "lm_head"),
    ),
    "nomic_bert": Family(
        "NomicBertModel", lambda: hf.NomicBertConfig(**SMALL, max_position_embeddings=32),
        ("encoder.layers.0", "encoder.layers.1"),
    ),
    "musicgen": Family(
        "MusicgenForCausalLM",
        lambda: hf.MusicgenDecoderConfig(
            **{**TEXT, "pad_token_id": 2}, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24,
            num_codebooks=2, max_position_embeddings=32,
        ),
        ("lm_heads", "model.decoder.layers.0", "model.decoder.layers.1", "model.decoder"), reads="codes",
    ),
    "vit": Family(
        "ViTForImageClassification", lambda: hf.ViTConfig(**SEEN, num_labels=3),
        _decoder("vit.encoder.layer", "classifier", "vit.layernorm"), reads="images",
    ),
    "clip": Family(
        "CLIPModel",
        lambda: hf.CLIPConfig(
            text_config={**SMALL, "max_position_embeddings": 32}, vision_config=SEEN, projection_dim=8
        ),
        (
            "text_model.encoder.layers.0", "text_model.encoder.layers.1",
            "vision_model.encoder.layers.0", "vision_model.encoder.layers.1",
            "logit_scale", "text_model.final_layer_norm", "text_projection", "vision_model.post_layernorm",
            "vision_model.pre_layrnorm", "visual_projection",
        ),
        reads="both",
    ),
}  # fmt: skip

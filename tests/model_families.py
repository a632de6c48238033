"""Tiny random models of many architectures, with the vocabulary of `conftest.build_tiny_model`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tests.tiny_models import build_tiny_model

SPECIAL: dict[str, Any] = {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 1}
PLAIN: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 128, **SPECIAL,
}  # fmt: skip
GROUPED: dict[str, Any] = {**PLAIN, "num_key_value_heads": 2}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, **SPECIAL}
OPT: dict[str, Any] = {
    "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128,
    **SPECIAL,
}  # fmt: skip
MAMBA: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, **SPECIAL}

FAMILIES: dict[str, Callable[[int], Any]] = {
    "gpt2": lambda v: hf.GPT2Config(vocab_size=v, **GPT),
    "llama": lambda v: hf.LlamaConfig(vocab_size=v, **GROUPED),
    "qwen2": lambda v: hf.Qwen2Config(vocab_size=v, **GROUPED),
    "qwen3": lambda v: hf.Qwen3Config(vocab_size=v, head_dim=8, **GROUPED),
    "gemma2": lambda v: hf.Gemma2Config(vocab_size=v, head_dim=8, sliding_window=8, **GROUPED),
    "gemma3": lambda v: hf.Gemma3TextConfig(
        vocab_size=v, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"], **GROUPED
    ),
    "gpt_neox": lambda v: hf.GPTNeoXConfig(vocab_size=v, **PLAIN),
    "gptj": lambda v: hf.GPTJConfig(vocab_size=v, rotary_dim=8, **GPT),
    "opt": lambda v: hf.OPTConfig(vocab_size=v, word_embed_proj_dim=32, **OPT),
    "opt_projected": lambda v: hf.OPTConfig(vocab_size=v, word_embed_proj_dim=16, **OPT),
    "phi3": lambda v: hf.Phi3Config(vocab_size=v, **GROUPED),
    "mixtral": lambda v: hf.MixtralConfig(vocab_size=v, num_local_experts=4, **GROUPED),
    "mistral": lambda v: hf.MistralConfig(vocab_size=v, sliding_window=8, **GROUPED),
    "bloom": lambda v: hf.BloomConfig(vocab_size=v, hidden_size=32, n_layer=2, n_head=4, **SPECIAL),
    "mpt": lambda v: hf.MptConfig(vocab_size=v, d_model=32, n_heads=4, n_layers=2, max_seq_len=128, **SPECIAL),
    "mamba": lambda v: hf.MambaConfig(vocab_size=v, **MAMBA),
    "mamba2": lambda v: hf.Mamba2Config(vocab_size=v, num_heads=8, head_dim=8, n_groups=1, chunk_size=8, **MAMBA),
    "recurrent_gemma": lambda v: hf.RecurrentGemmaConfig(
        vocab_size=v, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        attention_window_size=16, lru_width=32, **SPECIAL,
    ),
    "lfm2": lambda v: hf.Lfm2Config(vocab_size=v, layer_types=["conv", "full_attention"], **GROUPED),
    "qwen3_next": lambda v: hf.Qwen3NextConfig(
        vocab_size=v, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        shared_expert_intermediate_size=32, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, **GROUPED,
    ),
    "jamba": lambda v: hf.JambaConfig(
        vocab_size=v, num_experts=2, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False, **GROUPED,
    ),
    "openai_gpt": lambda v: hf.OpenAIGPTConfig(vocab_size=v, **GPT),  # takes no cache
    "roberta": lambda v: hf.RobertaConfig(vocab_size=v, is_decoder=True, **PLAIN),  # tells positions by ids
}  # fmt: skip
NOT_CAUSAL: dict[str, Callable[[int], Any]] = {
    "bert": lambda v: hf.BertConfig(vocab_size=v, **PLAIN),
    "xlnet": lambda v: hf.XLNetConfig(vocab_size=v, d_model=32, n_layer=2, n_head=4, d_inner=64, **SPECIAL),
}
LENGTH_CHANGES_ALL: Callable[[int], Any] = lambda v: hf.Phi3Config(  # noqa: E731
    vocab_size=v, original_max_position_embeddings=16, **GROUPED,
    rope_parameters={
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4,
        "original_max_position_embeddings": 16,
    },
)  # fmt: skip


def random_model(config: Any, sharpness: float = 4.0) -> Any:
    """A random model whose distributions are far from flat, so that a wrong position is seen."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(sharpness)
    return model


def write_family(folder: Path, config: Callable[[int], Any], sharpness: float = 1.0) -> Path:
    """A model folder with a tokenizer."""
    build_tiny_model(folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    for file in (*folder.glob("*.safetensors"), *folder.glob("*config.json")):
        if not file.name.startswith("tokenizer"):
            file.unlink()
    random_model(config(len(tokenizer)), sharpness).save_pretrained(folder)
    return folder

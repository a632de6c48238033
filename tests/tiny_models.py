"""Random models that are small enough for any test."""

from __future__ import annotations

from pathlib import Path

import torch

CORPUS = [
    "Once upon a time a small cat sat on a soft mat and sang a silly song.",
    "Tim took the tall tree to town, and the town thanked Tim.",
    "A brave bear bought big blue balloons; Anna ate an apple.",
    "The quick brown fox jumps over the lazy dog, again and again.",
]


def build_tiny_model(folder: Path, architecture: str = "llama", pad_is_eos: bool = False, seed: int = 0) -> Path:
    """Writes a random causal LM of some 30,000 parameters and its own byte-level BPE; returns the folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    specials = ["<|endoftext|>"] if pad_is_eos else ["<|endoftext|>", "<|pad|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=specials[0], bos_token=specials[0], pad_token=specials[-1], padding_side="left"
    )
    sizes: dict[str, dict[str, object]] = {
        "llama": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
        },
        "qwen2": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
        },
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
        "gpt_neo": {
            "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 128,
            "attention_types": [[["global", "local"], 1]], "window_size": 16, "intermediate_size": 64,
        },
    }  # fmt: skip
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        architecture, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id, **sizes[architecture],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

"""A small byte-level BPE tokenizer and a small Llama, both made from scratch: what `rayrlhf sft --new` starts from."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rayrlhf.errors import ModelError

EOS, PAD = "<|endoftext|>", "<|pad|>"
MIN_VOCABULARY = 256 + 2  # every byte and the two special tokens


def train_tokenizer(documents: Iterable[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE (Sennrich et al. 2016; bytes as in Radford et al. 2019) of at most `vocabulary` tokens.

    EOS (which is BOS as well) and pad are tokens of their own, and padding is on the left. `context` is the longest
    sequence in tokens that the model will take.

    Raises:
        ModelError: `vocabulary` has no room for all bytes and the two special tokens.
    """
    if vocabulary < MIN_VOCABULARY:
        raise ModelError(
            f"--vocabulary {vocabulary} is too small: a byte-level tokenizer has at least {MIN_VOCABULARY} tokens"
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def new_llama(tokenizer: PreTrainedTokenizerFast, architecture: dict[str, int], seed: int) -> LlamaForCausalLM:
    """A Llama with random fp32 weights and tied embeddings.

    `architecture` has the keys hidden, layers, heads, kv_heads, mlp and context, all counts; heads must divide hidden.

    Raises:
        ModelError: the counts do not fit each other.
    """
    hidden, heads, kv_heads = architecture["hidden"], architecture["heads"], architecture["kv_heads"]
    if hidden % heads or (hidden // heads) % 2 or heads % kv_heads:
        raise ModelError(
            f"--new hidden={hidden},heads={heads},kv_heads={kv_heads} does not fit: heads must divide hidden into even "
            "parts, and kv_heads must divide heads"
        )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=architecture["mlp"],
        num_hidden_layers=architecture["layers"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=architecture["context"],
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float()

"""What `rayrlhf sft` trains on and from: packed blocks of documents, and the new model where one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rayrlhf.config import ModelConfig
from rayrlhf.corpus import pack, split_documents, token_stream
from rayrlhf.errors import ModelError, PromptError
from rayrlhf.model_config import first_line, read_model_config, stated_context
from rayrlhf.next_token import TRAINING_BLOCKS, VALIDATION_BLOCKS
from rayrlhf.supervised import SupervisedSettings
from rayrlhf.tokenizer_training import new_llama, train_tokenizer


def prepare_blocks(
    work: Path,
    settings: SupervisedSettings,
    show: Callable[[str], None],
    documents: Callable[[], Sequence[str]],
    validation_share: float,
    new: Mapping[str, int] | None,
) -> SupervisedSettings:
    """Lays the packed documents down in `work`, and the model of `new` (keys of `new_llama` and `vocabulary`), if any.

    Raises:
        PromptError: there are too few tokens for one block of training and one of validation.
        ModelError: the model or tokenizer cannot be used.
    """
    corpus = documents()
    training, validation = split_documents(corpus, validation_share)
    if new is None:
        tokenizer = _load_tokenizer(settings)
    else:
        settings = replace(settings, model=str(work / "start"))
        tokenizer = train_tokenizer(training, new["vocabulary"], new["context"])
        model = new_llama(tokenizer, dict(new), settings.seed)
        model.save_pretrained(settings.model)
        tokenizer.save_pretrained(settings.model)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        show(f"new model: {parameters:,} parameters, {len(tokenizer):,} tokens in its vocabulary")
    for name, part, share in ((TRAINING_BLOCKS, training, "training"), (VALIDATION_BLOCKS, validation, "validation")):
        blocks = _packed(part, tokenizer, settings.tokens_per_example, share)
        np.save(work / name, blocks.astype(np.int32))
        show(f"{share}: {len(part):,} documents, {blocks[:, 1:].size:,} tokens in {len(blocks):,} blocks")
    return settings


def _load_tokenizer(settings: SupervisedSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of the model to continue from, checked together with its config. Raises ModelError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.model)
        config = read_model_config(ModelConfig(path=settings.model), settings.model)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"--model {settings.model} does not load: {first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"--model {settings.model}: its tokenizer has no end-of-sequence token to put between documents"
        )
    context = stated_context(config)
    if context is not None and settings.tokens_per_example > context:
        raise ModelError(
            f"--block-size {settings.tokens_per_example} is more than the {context} tokens {settings.model} takes"
        )
    return tokenizer


def _packed(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, block_size: int, share: str) -> np.ndarray:
    stream = token_stream(documents, tokenizer)
    blocks = pack(stream, block_size)
    if not len(blocks):
        raise PromptError(
            f"the {share} part has {len(stream) - 1} tokens, fewer than one block of {block_size}: give more text, "
            f"{'a larger --validation-share, ' if share == 'validation' else ''}or a smaller --block-size"
        )
    return blocks

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
from rayrlhf.model_config import read_model_config, stated_context
from rayrlhf.next_token import TRAINING_BLOCKS, VALIDATION_BLOCKS
from rayrlhf.reading import typed_line
from rayrlhf.supervised import SupervisedSettings
from rayrlhf.tokenizer_training import new_llama, train_tokenizer

MOST_VALIDATION = 0.5  # share of the text


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
    parts = {"training": training, "validation": validation}
    blocks = {share: _packed(part, tokenizer, settings.tokens_per_example) for share, part in parts.items()}
    if not len(blocks["validation"]):
        larger = _larger_share(corpus, tokenizer, settings.tokens_per_example, validation_share)
        if larger is not None:
            show(
                f"a share of {validation_share:g} is less than a block: {larger:g} of the text is held out for validation"
            )
            parts = dict(zip(parts, split_documents(corpus, larger), strict=True))
            blocks = {share: _packed(part, tokenizer, settings.tokens_per_example) for share, part in parts.items()}
    for share, name in (("training", TRAINING_BLOCKS), ("validation", VALIDATION_BLOCKS)):
        if not len(blocks[share]):
            raise PromptError(
                f"the {share} part has fewer tokens than one block of {settings.tokens_per_example}: give more text, or a "
                "smaller --block-size"
            )
        np.save(work / name, blocks[share].astype(np.int32))
        tokens = blocks[share][:, 1:].size
        show(f"{share}: {len(parts[share]):,} documents, {tokens:,} tokens in {len(blocks[share]):,} blocks")
    return settings


def _larger_share(
    corpus: Sequence[str], tokenizer: PreTrainedTokenizerBase, block_size: int, least: float
) -> float | None:
    """The smallest share of those tried whose validation part fills a block, and whose training part does too; None
    where there is none."""
    for share in (least * 2**step for step in range(1, 14)):
        if share > MOST_VALIDATION:
            break
        if all(len(_packed(part, tokenizer, block_size)) for part in split_documents(corpus, share)):
            return share
    if all(len(_packed(part, tokenizer, block_size)) for part in split_documents(corpus, MOST_VALIDATION)):
        return MOST_VALIDATION
    return None


def _load_tokenizer(settings: SupervisedSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of the model to continue from, checked together with its config. Raises ModelError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.model, trust_remote_code=False)
        config = read_model_config(ModelConfig(path=settings.model), settings.model)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"--model {settings.model} does not load: {typed_line(error)}") from error
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


def _packed(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, block_size: int) -> np.ndarray:
    return pack(token_stream(documents, tokenizer), block_size)

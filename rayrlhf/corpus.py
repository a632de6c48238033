"""Documents for next-token training: read from text files, tokenised, and packed into blocks of one length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from rayrlhf.errors import PromptError
from rayrlhf.reading import parse_json, read_text
from rayrlhf.tokenizer_training import EOS
from rayrlhf.types import IntArray

SUFFIXES = (".txt", ".jsonl")
_TOKENIZER_BATCH = 1000  # documents


def read_documents(sources: Sequence[Path]) -> list[str]:
    """All documents of text files, or of every .txt and .jsonl file under folders, in the order of their names.

    A .jsonl file has one object a line with the document in `text`; any other file is one document, or several that
    `<|endoftext|>` separates. Blank documents are left out.

    Raises:
        PromptError: a file is missing, empty, not UTF-8 or not JSONL; names it, and the line where there is one.
    """
    documents: list[str] = []
    for source in sources:
        for file in _files(source):
            found = [document for document in _read(file, piped=file is source) if document.strip()]
            if not found:
                raise PromptError(f"--text {file}: the file has no text")
            documents += found
    return documents


def _files(source: Path) -> list[Path]:
    if not source.exists():
        raise PromptError(f"--text {source}: no such file or folder")
    if not source.is_dir():
        return [source]
    files = sorted(file for file in source.rglob("*") if file.is_file() and file.suffix in SUFFIXES)
    if not files:
        raise PromptError(f"--text {source}: the folder has no {' or '.join(SUFFIXES)} file")
    return files


def _read(file: Path, piped: bool) -> Iterator[str]:
    text = read_text(file, PromptError, f"--text {file}", piped)
    if file.suffix != ".jsonl":
        yield from (document.strip("\r\n") for document in text.split(EOS))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = parse_json(line, f"--text {file}:{number}", PromptError)
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise PromptError(f'--text {file}:{number}: expected an object with the document in "text"')
        yield row["text"]


def token_stream(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> IntArray:
    """All documents as one sequence of ids [tokens]: EOS before the first and after each (SPEC WP-5).

    The tokenizer adds nothing of its own: every document starts right after an EOS, as an unprompted sample does.
    """
    eos = tokenizer.eos_token_id
    pieces: list[list[int]] = [[eos]]
    remaining = iter(documents)
    while batch := list(islice(remaining, _TOKENIZER_BATCH)):
        encoded = tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        pieces += [[*ids, eos] for ids in encoded]
    return np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces])


def pack(stream: IntArray, block_size: int) -> IntArray:
    """Cuts a stream into blocks [blocks, block_size + 1] that overlap by one token.

    A block's targets are its last `block_size` tokens, so each token of the stream but the first is a target once;
    what does not fill a block at the end is left out.
    """
    blocks = max(0, (len(stream) - 1) // block_size)
    starts = np.arange(blocks)[:, None] * block_size
    return stream[starts + np.arange(block_size + 1)[None, :]]


def split_documents(documents: Sequence[str], validation_share: float) -> tuple[list[str], list[str]]:
    """Training and validation documents: the validation ones lie evenly over the whole corpus, at least one of them.

    A single document is cut in two near its end, at white space.
    """
    if len(documents) == 1:
        text = documents[0]
        cut = len(text) - max(1, round(len(text) * validation_share))
        cut = text.rfind(" ", 0, cut) + 1 or cut
        return [text[:cut]], [text[cut:]]
    every = min(len(documents), max(2, round(1 / validation_share)))
    validation = list(documents[every - 1 :: every])
    training = [document for index, document in enumerate(documents) if index % every != every - 1]
    return training, validation


def block_order(blocks: int, positions: range, seed: int) -> IntArray:
    """Which block stands at each position of an endless run through the data, reshuffled after every pass.

    A function of its arguments alone: a resumed run continues in the same order.
    """
    index = np.empty(len(positions), dtype=np.int64)
    at = 0
    while at < len(positions):
        data_pass, offset = divmod(positions[at], blocks)
        order = np.random.default_rng([seed, data_pass]).permutation(blocks)
        taken = order[offset : offset + len(positions) - at]
        index[at : at + len(taken)] = taken
        at += len(taken)
    return index

"""`rayrlhf sft`: next-token training of a causal language model on text files or generated stories."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from rayrlhf.corpus import read_documents
from rayrlhf.errors import ConfigError
from rayrlhf.next_token import build
from rayrlhf.next_token_data import prepare_blocks
from rayrlhf.policy import resolve_model
from rayrlhf.stories import generate_stories
from rayrlhf.supervised import SupervisedSettings
from rayrlhf.supervised_run import supervised_run
from rayrlhf.terminal_output import say

ARCHITECTURE = {"hidden": 128, "layers": 4, "heads": 4, "kv_heads": 4, "mlp": 448, "context": 512}
_ZERO_STAGES: dict[int, Literal[0, 1, 2, 3]] = {0: 0, 1: 1, 2: 2, 3: 3}


def sft(
    output: Annotated[Path, typer.Argument(help="Folder for the trained model; it must not exist yet.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text file (documents separated by <|endoftext|>), .jsonl file (a `text` each line), or folder."
        ),
    ] = None,
    stories: Annotated[int, typer.Option(min=0, help="Train on so many generated children's stories as well.")] = 0,
    model: Annotated[
        str | None, typer.Option(help="Continue from this model: a folder, a hub name, tiny-stories.")
    ] = None,
    new: Annotated[
        str | None,
        typer.Option(
            help="Start from a new Llama: `hidden=128,layers=4,heads=4,kv_heads=4,mlp=448,context=512` or a part of it; "
            "`default` changes nothing."
        ),
    ] = None,
    vocabulary: Annotated[int, typer.Option(help="Tokens of a new model's byte-level BPE.")] = 1024,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 1000,
    lr: Annotated[float, typer.Option(min=0, help="Highest learning rate; it follows a cosine.")] = 3e-4,
    warmup_steps: Annotated[int, typer.Option(min=0, help="Steps over which the learning rate rises.")] = 50,
    weight_decay: Annotated[float, typer.Option(min=0, help="AdamW's, on matrices.")] = 0.01,
    max_grad_norm: Annotated[float, typer.Option(min=0, help="Gradients are clipped to this norm; 0: not.")] = 1.0,
    batch_blocks: Annotated[int, typer.Option(min=1, help="Blocks in one optimizer step, over all workers.")] = 32,
    forward_blocks: Annotated[
        int | None, typer.Option(min=1, help="Most blocks in one forward pass of a worker; default: its whole share.")
    ] = None,
    block_size: Annotated[int, typer.Option(min=2, help="Tokens in a block.")] = 128,
    validation_share: Annotated[float, typer.Option(min=0.0001, max=0.5, help="Share of documents held out.")] = 0.02,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints and validations.")] = 200,
    workers: Annotated[int, typer.Option(min=1, help="Ray Train workers, one device each.")] = 1,
    zero_stage: Annotated[int, typer.Option(min=0, max=3, help="DeepSpeed ZeRO stage.")] = 2,
    precision: Annotated[str, typer.Option(help="auto (bf16 on a GPU that has it), fp32 or bf16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of a new model's weights, of the stories and the data order.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run of the same command.")] = False,
) -> None:
    """Train a language model on the next token, with Lightning and DeepSpeed in Ray Train."""
    request = {key: value for key, value in locals().items() if key not in ("output", "resume")}
    request["text"] = [os.path.abspath(path) for path in text or []]
    if not text and not stories:
        raise ConfigError("nothing to train on: give --text FILE_OR_FOLDER, --stories N, or both")
    if (model is None) == (new is None):
        raise ConfigError("give one of --model (continue from a model) and --new (start a new one; `--new default`)")
    if not 0 < lr < float("inf"):
        raise ConfigError(f"--lr {lr:g} must be a positive, finite number")
    chosen_device = _device(device)
    settings = SupervisedSettings(
        model=resolve_model(model) if model is not None else "",
        steps=steps,
        lr=lr,
        examples_per_step=batch_blocks,
        examples_per_forward=_blocks_per_forward(batch_blocks, workers, forward_blocks),
        tokens_per_example=block_size,
        workers=workers,
        zero_stage=_ZERO_STAGES[zero_stage],
        seed=seed,
        checkpoint_every=min(checkpoint_every, steps),
        warmup_steps=min(warmup_steps, steps),
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        precision=_precision(precision, chosen_device),
        device=chosen_device,
    )
    architecture = None if new is None else {**parse_architecture(new), "vocabulary": vocabulary}
    if architecture is not None and block_size > architecture["context"]:
        raise ConfigError(f"--block-size {block_size} is more than the context={architecture['context']} of --new")

    def documents() -> Sequence[str]:
        return [*read_documents(text or []), *generate_stories(stories, seed)]

    prepare = partial(prepare_blocks, documents=documents, validation_share=validation_share, new=architecture)
    told = supervised_run(output, settings, build, prepare, request, resume, say)
    say(f"{output}: validation loss {told['validation_loss']:.4f} nats a token")


def parse_architecture(text: str) -> dict[str, int]:
    """`hidden=64,layers=2` -> all of ARCHITECTURE with those two changed. Raises ConfigError."""
    architecture = dict(ARCHITECTURE)
    for part in text.split(",") if text != "default" else []:
        key, _, value = part.partition("=")
        if key.strip() not in architecture:
            raise ConfigError(f"--new {part.strip()}: unknown; the keys are {', '.join(ARCHITECTURE)}")
        if not value.strip().isdecimal() or int(value) < 1:
            raise ConfigError(
                f"--new {part.strip()}: give a positive whole number, as in {key.strip()}={ARCHITECTURE[key.strip()]}"
            )
        architecture[key.strip()] = int(value)
    return architecture


def _blocks_per_forward(batch_blocks: int, workers: int, forward_blocks: int | None) -> int:
    """The largest number that --forward-blocks allows and that divides each worker's share of a step."""
    if batch_blocks % workers:
        raise ConfigError(
            f"--batch-blocks {batch_blocks} cannot be dealt evenly to --workers {workers}: make it a multiple"
        )
    share = batch_blocks // workers
    most = min(share, forward_blocks or share)
    return next(blocks for blocks in range(most, 0, -1) if share % blocks == 0)


def _device(name: str) -> Literal["cpu", "cuda"]:
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {name}: choose auto, cpu or cuda")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda" if name == "cuda" else "cpu"


def _precision(name: str, device: str) -> Any:
    if name not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"--precision {name}: choose auto, fp32 or bf16")
    if name == "auto":
        name = "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return {"fp32": "32-true", "bf16": "bf16-mixed"}[name]


if __name__ == "__main__":
    typer.run(sft)

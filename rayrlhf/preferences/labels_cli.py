"""`rayrlhf labels`: import, export and check files of people's preferences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayrlhf.terminal_output import say
from rayrlhf.trust_option import TrustOption

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


labels_app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Import, export and check people's preferences. Formats: native, openai_json, trl, anthropic_hh, summarize; "
    "samples and text hold only texts to rate.",
)

_Format = Annotated[str | None, typer.Option("--format", help="Format of the files; default: found out by content.")]
_Tokenizer = Annotated[
    str | None, typer.Option(help="Model whose tokenizer made the ids: a folder, a hub name, tiny-stories.")
]
_WithoutText = Annotated[bool, typer.Option("--without-text", help="Keep token ids alone, whatever they mean.")]
_PadId = Annotated[
    int | None, typer.Option(min=0, help="Id that samples are padded with: a run of it at their end is no text.")
]


@labels_app.command("import")
def import_labels(
    files: Annotated[list[Path], typer.Argument(help="Label files, or folders of runs whose samples are to be rated.")],
    project: Annotated[Path, typer.Argument(help="Folder of the project; made where there is none.")],
    format: _Format = None,
    tokenizer: _Tokenizer = None,
    without_text: _WithoutText = False,
    pad_id: _PadId = None,
    min_characters: Annotated[int, typer.Option(min=0, help="Leave shorter samples out.")] = 0,
    separator: Annotated[
        str, typer.Option(help="What stands between samples of a text, and may end those of a run; empty: nothing.")
    ] = "<|endoftext|>",
    generator: Annotated[str, typer.Option(help="What wrote the texts, where a file does not say.")] = "",
    skip_faulty: Annotated[
        bool, typer.Option("--skip-faulty", help="Import what is sound; without it, one faulty line stops all.")
    ] = False,
    trust: TrustOption = None,
) -> None:
    """Take label files into a project's rating store. A file that is imported again adds nothing."""
    from rayrlhf.preferences.formats.content import ReadOptions
    from rayrlhf.preferences.formats.registry import read_file
    from rayrlhf.preferences.label_import import LabelFile, import_file, refuse_faults
    from rayrlhf.preferences.label_text import import_lines
    from rayrlhf.preferences.project import open_store

    loaded = _loaded(tokenizer, trust)
    options = ReadOptions(loaded, without_text, pad_id, min_characters, separator, generator)
    read = [LabelFile(path, *read_file(path, options, format)) for path in files]
    if not skip_faulty:
        refuse_faults(read, "nothing was imported: mend the lines, or leave them out with --skip-faulty")
    with open_store(project, create=True) as store:
        for file in read:
            report = import_file(store, file, None if loaded is None else _fingerprint(loaded))
            say("\n".join(import_lines(file, report)))


@labels_app.command("export")
def export_labels(
    project: Annotated[Path, typer.Argument(help="Folder of the project.")],
    file: Annotated[Path, typer.Argument(help="File to write; it must not exist yet.")],
    format: Annotated[
        str, typer.Option("--format", help="native, openai_json, trl, anthropic_hh or summarize.")
    ] = "native",
    tokenizer: Annotated[
        str | None, typer.Option(help="openai_json: model whose tokenizer makes ids of texts that have none.")
    ] = None,
    trust: TrustOption = None,
) -> None:
    """Write a project's labels to a file, and say what its format cannot hold."""
    from rayrlhf.errors import PreferenceError
    from rayrlhf.files import replace_file
    from rayrlhf.preferences.formats.content import Content
    from rayrlhf.preferences.formats.registry import FORMATS, WRITABLE, encode
    from rayrlhf.preferences.label_text import export_lines
    from rayrlhf.preferences.project import open_store

    if format not in WRITABLE:
        raise PreferenceError(f"--format {format}: choose from {', '.join(WRITABLE)}")
    if file.exists():
        raise PreferenceError(f"{file} is there already: name another file, or remove it")
    if not file.absolute().parent.is_dir():
        raise PreferenceError(f"{file}: there is no such folder to write it in")
    with open_store(project) as store:
        history = tuple(store.history())  # before the items: raters may be adding to both
        content = Content(store.items(), history, store.meta())
    chosen = FORMATS[format]
    assert chosen.write is not None
    export = chosen.write(content, _loaded(tokenizer, trust))
    replace_file(file, encode(export.rows, chosen.is_array))
    say("\n".join(export_lines(file, export)))


@labels_app.command("check")
def check_labels(
    file: Annotated[Path, typer.Argument(help="Label file, or folder of a project.")],
    format: _Format = None,
    tokenizer: _Tokenizer = None,
    rollouts: Annotated[
        Path | None, typer.Option(help="Run, or file of samples, that the labels should resemble.")
    ] = None,
    trust: TrustOption = None,
) -> None:
    """Report counts, ties, sources and what is wrong, by file and line. Exit code 1 where there are faults."""
    from rayrlhf.preferences.formats.content import ReadOptions
    from rayrlhf.preferences.label_check import check
    from rayrlhf.preferences.label_text import check_lines

    loaded = _loaded(tokenizer, trust)
    options = ReadOptions(loaded, without_text=loaded is None)
    report = check(file, options, format, rollouts, None if loaded is None else _fingerprint(loaded))
    say("\n".join(check_lines(report)))
    if report.faults:
        raise typer.Exit(1)


def _loaded(model: str | None, trust: list[str] | None) -> PreTrainedTokenizerBase | None:
    if model is None:
        return None
    from rayrlhf.config import ModelConfig
    from rayrlhf.policy import load_tokenizer
    from rayrlhf.trust import Trust, trusted_model

    return load_tokenizer(trusted_model(ModelConfig(path=model), model, Trust.of(trust)))


def _fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    from rayrlhf.policy import vocabulary_fingerprint

    return vocabulary_fingerprint(tokenizer)

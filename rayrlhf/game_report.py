"""What the report shows of games: their transcripts, and the table of an evaluation."""

from __future__ import annotations

from rayrlhf.evaluation_results import HEADINGS, Cell, Evaluation, notes, table_rows
from rayrlhf.metrics import SampleRecord, TurnRecord
from rayrlhf.report_page import text

TRANSCRIPT_SHOWN = 6000
"""Characters of a transcript after which no further turn is shown."""


def transcript(episode: SampleRecord) -> str:
    """A game's observations and commands, each command with its probability and the value of the state before it."""
    shown, length = [], 0
    for number, turn in enumerate(episode.turns):
        if length > TRANSCRIPT_SHOWN:
            shown.append(f"<i>… {len(episode.turns) - number} more turns</i>")
            break
        shown.append(
            f"<span>{text(turn.observation)}</span>\n<b>&gt; {text(turn.action)}</b> <i>({_facts(turn)})</i>\n"
        )
        length += len(turn.observation) + len(turn.action)
    else:
        shown.append(f"<span>{text(_ending(episode))}</span>")
    return f'<div class="text game" dir="auto">{"".join(shown)}</div>'


def _facts(turn: TurnRecord) -> str:
    """`p=0.93, V=0.71`, and what else is worth a word."""
    facts = ["example" if turn.probability is None else f"p={turn.probability:.2f}"]
    if turn.value is not None:
        facts.append(f"V={turn.value:.2f}")
    if turn.reward:
        facts.append(f"reward {turn.reward:+g}")
    if not turn.valid:
        facts.append("not understood")
    return ", ".join(facts)


def _ending(episode: SampleRecord) -> str:
    """What the game said after the last turn: the rest of the text. An episode of one turn keeps none."""
    told = "".join(f"{turn.observation}\n> {turn.action}\n" for turn in episode.turns)
    return episode.text.removeprefix(told) if episode.text.startswith(told) else ""


def evaluation_table(evaluation: Evaluation) -> str:
    """The section of an evaluation: the table, and the setting under it."""
    heads = "".join(f"<th>{heading}</th>" for heading in HEADINGS)
    rows = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in table_rows(evaluation))
    lines = "".join(f"<p>{text(line)}</p>" for line in notes(evaluation))
    return (
        f'<h2>Evaluation on held-out games</h2><div class="wide"><table class="evaluation"><tr>{heads}</tr>{rows}</table>'
        f'</div><div class="notes">{lines}</div>'
    )


def _cell(cell: Cell) -> str:
    interval = f"<small>{text(cell.interval)}</small>" if cell.interval else ""
    return f"<td>{text(cell.value)}{interval}</td>"

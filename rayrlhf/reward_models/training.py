"""Trains a reward model on a project's labels: from records to a finished folder, through Ray Train.

make_reward_model(output, TrainingLabels(...), task, config)

The order is the original's (SPEC LMHP-11 to LMHP-13): sample from the reference, set gain and bias, train, set them again
on the reference's samples.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rayrlhf.config import ModelConfig, RunConfig
from rayrlhf.errors import ModelError
from rayrlhf.policy import context_length, end_ids, load_tokenizer, resolve_model, vocabulary_fingerprint
from rayrlhf.preferences.ranking import Ranking
from rayrlhf.preferences.records import Comparison, Item, Rating
from rayrlhf.reading import first_line, read_record
from rayrlhf.reward_models.config import RewardModelConfig
from rayrlhf.reward_models.evaluation import Evaluation, evaluate_comparisons, pearson, plot_evaluation
from rayrlhf.reward_models.examples import ExampleTable, save_arrays
from rayrlhf.reward_models.folder import (
    finish_reward_model,
    load_reward_network,
    load_reward_tokenizer,
    scalars_of,
    write_start,
)
from rayrlhf.reward_models.labels import LabelledData, labelled_data
from rayrlhf.reward_models.losses import TIE, log_tie_of_share
from rayrlhf.reward_models.module import CONFIG, HELD_OUT, TRAINING, build
from rayrlhf.reward_models.network import RewardNetwork, new_reward_network, score_sequences
from rayrlhf.reward_models.normalisation import label_scale, normalise, scale_of
from rayrlhf.reward_models.scoring import RewardScorer
from rayrlhf.reward_models.sidecar import Sidecar, read_sidecar, with_scalars
from rayrlhf.reward_models.task_form import task_of
from rayrlhf.reward_models.tasks import sample_task
from rayrlhf.reward_models.text_format import TextFormat
from rayrlhf.supervised import SupervisedSettings
from rayrlhf.supervised_run import supervised_run

SAMPLES_SEED = 2_000_003
"""Of the reference's samples: far from the seeds with which texts are drawn to be rated. A model scores texts that it was
trained on further apart than others, and normalised on them it would score fresh ones with a deviation below 1."""
EVALUATION, PLOT = "evaluation.json", "evaluation.png"  # files of the finished folder
_SAMPLES, _JUDGED, _SOURCES = "samples.npz", "judged.npz", "sources.json"  # files of the work folder

Show = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TrainingLabels:
    """What a project knows."""

    items: Mapping[str, Item]
    comparisons: Sequence[Comparison]
    ratings: Sequence[Rating]
    ranking: Ranking | None  # for the objective `latent`
    vocabulary: str  # fingerprint of the tokenizer of the items' ids


def make_reward_model(
    output: Path,
    labels: TrainingLabels,
    task: RunConfig,
    config: RewardModelConfig,
    request: Mapping[str, Any],
    resume: bool = False,
    show: Show = print,
    kept_samples: Path | None = None,
) -> dict[str, Any]:
    """Trains a reward model and leaves its folder at `output`; returns what is known of it (`training.json`).

    task: whose model is the reference and what the scores are normalised on. request: names what was asked for, see
    `supervised_run`. kept_samples: folder in which the reference's samples stay, for the next reward model.

    Raises:
        PreferenceError: too few labels of the objective's kind.
        ModelError: the model cannot be used.
        LearnerError: training failed, or the scores cannot be normalised.
    """

    def prepare(work: Path, settings: SupervisedSettings, show: Show) -> SupervisedSettings:
        return _prepare(work, settings, labels, task, config, kept_samples, show)

    def finish(model: Path) -> Mapping[str, Any]:
        return _finish(model, model.parent, config, show)

    return supervised_run(output, _settings(config), build, prepare, request, resume, show, finish)


def _settings(config: RewardModelConfig) -> SupervisedSettings:
    """Settings that are known before the labels are; `_prepare` fills in the model and the number of steps."""
    device: Literal["cpu", "cuda"] = "cuda" if _cuda(config) else "cpu"
    per_worker = -(-config.batch_size // config.workers)
    forward = min(per_worker, config.examples_per_forward or per_worker)
    forward = 1 if config.recompute else next(n for n in range(forward, 0, -1) if per_worker % n == 0)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device == "cuda")
    return SupervisedSettings(
        model="",
        steps=1,
        lr=config.lr,
        examples_per_step=per_worker * config.workers,
        examples_per_forward=forward,
        tokens_per_example=1,
        workers=config.workers,
        zero_stage=config.zero_stage,
        seed=config.seed,
        checkpoint_every=1,
        warmup_steps=0,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        precision="bf16-mixed" if bf16 else "32-true",
        device=device,
        schedule="linear",
        betas=(0.9, 0.999),
        adam_eps=config.adam_eps,
    )


def _cuda(config: RewardModelConfig) -> bool:
    return config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())


def _prepare(
    work: Path,
    settings: SupervisedSettings,
    labels: TrainingLabels,
    task: RunConfig,
    config: RewardModelConfig,
    kept_samples: Path | None,
    show: Show,
) -> SupervisedSettings:
    network, tokenizer, text_format = _start(task.model, config)
    data = labelled_data(
        labels.items,
        labels.comparisons,
        labels.ratings,
        labels.ranking,
        config,
        text_format,
        tokenizer,
        labels.vocabulary,
    )
    for line in data.lines():
        show(line)
    samples = reference_samples(task, config, RewardScorer(network, tokenizer, text_format), kept_samples, show)
    _save_samples(work / _SAMPLES, samples)
    normalise(network, samples, label_scale(data.training, config))
    _set_tie(network, data.training, config)
    data.training.save(work / TRAINING)
    data.held_out.save(work / HELD_OUT)
    data.judged.save(work / _JUDGED)
    (work / _SOURCES).write_text(json.dumps([example.source for example in data.judged.examples]))
    (work / CONFIG).write_text(config.model_dump_json())
    start = work / "start"
    write_start(
        start, network, tokenizer, with_scalars(Sidecar(0.0, text_format, task=task_of(task)), scalars_of(network))
    )
    return _with_steps(settings, data, config, start)


def _with_steps(
    settings: SupervisedSettings, data: LabelledData, config: RewardModelConfig, start: Path
) -> SupervisedSettings:
    steps = config.epochs * math.ceil(len(data.training) / settings.examples_per_step)
    tokens = sum(sum(len(data.training.sequences[row]) for row in example.rows) for example in data.training.examples)
    return replace(
        settings,
        model=str(start),
        steps=steps,
        checkpoint_every=max(1, math.ceil(steps / 10)) if steps > 200 else steps,
        tokens_per_example=max(1, tokens // len(data.training)),
    )


def _start(
    reference: ModelConfig, config: RewardModelConfig
) -> tuple[RewardNetwork, PreTrainedTokenizerBase, TextFormat]:
    """The network to train: the reference's trunk with a new head, or another reward model (SPEC Q-9)."""
    if config.init is not None:
        folder = Path(config.init)
        network, tokenizer = load_reward_network(folder), load_reward_tokenizer(folder)
        text_format = read_sidecar(folder).text_format
        if not text_format.ends:  # made before texts were read without their ends: what is trained now is
            text_format = replace(text_format, ends=(int(tokenizer.eos_token_id),))
        return network, tokenizer, text_format
    tokenizer = load_tokenizer(reference)
    text_format = TextFormat.of(tokenizer, context_length(reference), end_ids(reference, tokenizer))
    return new_reward_network(resolve_model(reference.path), tokenizer, config.seed).eval(), tokenizer, text_format


def _set_tie(network: RewardNetwork, training: ExampleTable, config: RewardModelConfig) -> None:
    """Starts Davidson's parameter where equal items tie as often as the labels do."""
    if config.objective == "comparison" and config.ties == "davidson":
        ties = sum(example.best == TIE for example in training.examples)
        share = (ties + 0.5) / (len(training) + 1)
        network.log_tie.data.fill_(log_tie_of_share(share))


def reference_samples(
    task: RunConfig, config: RewardModelConfig, scorer: RewardScorer, kept: Path | None, show: Show
) -> list[np.ndarray]:
    """Token sequences of the unmodified reference's responses on the task's own queries, drawn once for each folder.

    kept: the folder in which they stay; a file of them that is damaged is told of and made anew.
    """
    if kept is not None:
        told = {"task": task_of(task), "model": task.model.path, "samples": config.normalisation_samples}
        name = json.dumps([told, config.seed, asdict(scorer.text_format)], sort_keys=True)
        kept = kept / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.npz"
        if (found := _kept_samples(kept, show)) is not None:
            return found
    trajectories = sample_task(task, task.model, config.normalisation_samples, SAMPLES_SEED + config.seed)
    vocabulary = vocabulary_fingerprint(load_tokenizer(task.model))
    samples = [scorer.encode(trajectory, vocabulary) for trajectory in trajectories]
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        _save_samples(kept, samples)
    return samples


def _kept_samples(path: Path, show: Show) -> list[np.ndarray] | None:
    """None where there are none, or none that can be read."""
    if not path.is_file():
        return None
    try:
        return _load_samples(path)
    except Exception as error:  # zip, zlib and NumPy have each its own for a file that is damaged
        show(f"{path} is damaged ({first_line(error)}): the reference's samples are drawn anew")
        return None


def _finish(model: Path, work: Path, config: RewardModelConfig, show: Show) -> Mapping[str, Any]:
    """Normalises, folds the gain, judges the model on the held-out labels and draws the picture."""
    network, sidecar = load_reward_network(model), read_sidecar(model)
    samples = _load_samples(work / _SAMPLES)
    trained = normalise(network, samples)
    reached = scale_of(score_sequences(network, samples))
    normalisation = {"samples": len(samples), "mean": reached.mean, "std": reached.std, "trained_std": trained.std}
    finish_reward_model(model, network, replace(sidecar, normalisation=normalisation))
    show(
        f"the reference's {len(samples)} samples scored {trained.mean:.3f} with deviation {trained.std:.3f}; gain and bias "
        f"make it {reached.mean:.3f} and {reached.std:.3f}"
    )
    # the labels speak of log odds, which the normalised scores are no longer on
    told = _judge_numbers(network, ExampleTable.load(work / HELD_OUT), config, show)
    judged = ExampleTable.load(work / _JUDGED)
    if len(judged):
        sources = read_record(work / _SOURCES, list[str], ModelError, "remove the folder to begin anew")
        told |= _judge_comparisons(network, judged, sources, trained.std, model / PLOT, show)
    if told:
        (model / EVALUATION).write_text(json.dumps(told, indent=1))
    return {"evaluation": told} if told else {}


def _judge_numbers(
    network: RewardNetwork, table: ExampleTable, config: RewardModelConfig, show: Show
) -> dict[str, Any]:
    """Correlation with held-out labels that are numbers (SPEC LMHP-3)."""
    if config.objective == "comparison" or not len(table):
        return {}
    scores = score_sequences(network, table.sequences)
    own = scores[[example.rows[-1] for example in table.examples]]
    if config.objective == "difference":
        own = own - scores[[example.rows[0] for example in table.examples]]
    values = np.array([example.value for example in table.examples])
    correlation = pearson(own, values)
    show(f"held out: {correlation_line(correlation, own, values)}")
    return {
        "pearson": correlation,
        "labels": len(values),
        "label_mean": float(values.mean()),
        "label_variance": float(values.var()),
    }


def _judge_comparisons(
    network: RewardNetwork, table: ExampleTable, sources: list[str], log_odds: float, picture: Path, show: Show
) -> dict[str, Any]:
    """Accuracy by source, calibration and margins (SPEC LMHP-14). log_odds: of a unit of the normalised scores."""
    scores = score_sequences(network, table.sequences) * log_odds
    examples = [replace(example, source=source) for example, source in zip(table.examples, sources, strict=True)]
    evaluation = evaluate_comparisons(examples, scores)
    plot_evaluation(evaluation, picture)
    show(f"held out: {held_out_line(evaluation)}")
    for name, accuracy in evaluation.by_source.items():
        show(f"  {name}: {accuracy}")
    return evaluation.as_json()


def held_out_line(evaluation: Evaluation) -> str:
    """What the held-out comparisons say, or what it is that they lack."""
    if evaluation.accuracy.share is None:
        return (
            f"no decisive comparison, {evaluation.ties} ties: how often the model is right is not known; give more labels, "
            "or a larger reward_model.held_out_share"
        )
    low, high = evaluation.accuracy.interval
    error = evaluation.calibration_error
    calibration = "no pair to calibrate on" if error is None else f"calibration error {error:.3f}"
    return (
        f"right in {evaluation.accuracy} decisive comparisons (95 %: {low:.1%} to {high:.1%}), {evaluation.ties} ties, "
        f"{calibration}"
    )


def correlation_line(correlation: float | None, scores: np.ndarray, values: np.ndarray) -> str:
    if correlation is not None:
        return f"correlation of scores and {len(values)} labels {correlation:.3f}"
    if len(values) < 2:
        return (
            f"{len(values)} label, too few for a correlation: give more labels, or a larger reward_model.held_out_share"
        )
    same = "labels" if not np.std(values) else "scores"
    return f"the {len(values)} {same} are all the same: there is no correlation of scores and labels"


def _save_samples(path: Path, samples: Sequence[np.ndarray]) -> None:
    save_arrays(path, ids=np.concatenate(samples), lengths=np.array([len(ids) for ids in samples]))


def _load_samples(path: Path) -> list[np.ndarray]:
    """Raises what the libraries raise, or ValueError, for a file that is damaged."""
    with np.load(path, allow_pickle=False) as file:
        ids, lengths = file["ids"], file["lengths"]
    if ids.dtype != np.int64 or ids.shape != (lengths.sum(),) or lengths.min() < 0:
        raise ValueError("its lengths are not those of its sequences")
    return np.split(ids, np.cumsum(lengths)[:-1])

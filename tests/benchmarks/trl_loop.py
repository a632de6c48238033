"""One timed run of TRL's RLOOTrainer; `compare_with_trl.py` starts it. Prints one JSON line: samples a second and parts.

Needs TRL: `pip install 'rayrlhf[bench]'`, or an environment of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time

import torch


def alliteration(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """The same rule as `rewards/alliteration.py`, written here so that TRL's environment need not have RayRLHF."""
    scores = []
    for prompt, completion in zip(prompts, completions):
        initials = [word[0].lower() for word in (prompt + completion).split()]
        scores.append(float(sum(a == b for a, b in itertools.pairwise(initials))))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--accumulation", type=int, required=True, help="micro-batches of one optimizer step")
    parser.add_argument("--cache", choices=["dynamic", "static"], required=True)
    parser.add_argument("--groups", type=int, required=True)
    parser.add_argument("--group-size", type=int, required=True)
    parser.add_argument("--max-new-tokens", type=int, required=True)
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    batch = arguments.groups * arguments.group_size
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            ends.append(time.perf_counter())
            if len(ends) == arguments.warmup:
                seconds.update(sampling=0.0, reference=0.0)

    seconds = {"sampling": 0.0, "reference": 0.0}

    class TimedTrainer(RLOOTrainer):
        """RLOOTrainer that notes where its time goes; it computes nothing else."""

        def _generate(self, *args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            result = super()._generate(*args, **kwargs)
            seconds["sampling"] += time.perf_counter() - start
            return result

        def _get_per_token_logps_and_entropies(self, *args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            if not torch.is_grad_enabled():
                seconds["reference"] += time.perf_counter() - start
            return result

    trainer = TimedTrainer(
        model=AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32),
        reward_funcs=alliteration,
        processing_class=AutoTokenizer.from_pretrained(arguments.model, padding_side="left"),
        train_dataset=Dataset.from_dict({"prompt": ["Once upon a time"] * (arguments.groups * 8)}),
        args=RLOOConfig(
            output_dir=arguments.output,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=batch // arguments.accumulation,
            gradient_accumulation_steps=arguments.accumulation,
            num_generations=arguments.group_size,
            max_completion_length=arguments.max_new_tokens,
            max_steps=arguments.iterations,
            learning_rate=3e-4,
            lr_scheduler_type="constant",
            beta=0.4,
            temperature=1.0,
            top_k=0,
            cache_implementation=None if arguments.cache == "dynamic" else arguments.cache,
            dataloader_num_workers=0,
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        callbacks=[Clock()],
    )
    trainer.train()
    counted = arguments.iterations - arguments.warmup
    wall = ends[-1] - ends[arguments.warmup - 1]
    print(
        json.dumps(
            {
                "samples_per_second": batch * counted / wall,
                "seconds_per_iteration": {
                    "iteration": wall / counted,
                    **{name: value / counted for name, value in seconds.items()},
                },
            }
        )
    )


if __name__ == "__main__":
    main()

"""What `rayrlhf doctor` tries in a process of its own: `python -m rayrlhf.doctor_probes deepspeed|ray|model`.

A probe prints one line that starts with `found: `, or fails with an error whose last line the doctor shows.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rayrlhf.launchers import forget_launchers

FOUND = "found: "
LONGEST_MESSAGE = 400  # characters of an error that are shown


@dataclass(frozen=True, slots=True)
class Outcome:
    works: bool
    said: str  # what was found, or why it failed


def attempt(probe: str, deadline_s: float) -> Outcome:
    """Runs a probe in a new process, and kills it with all its children at the deadline."""
    started = time.monotonic()
    package_root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), package_root]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}
    environment.pop("RAY_ADDRESS", None)  # the probe's cluster is its own
    forget_launchers(environment)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rayrlhf.doctor_probes", probe], start_new_session=True, env=environment,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            process.wait(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            return Outcome(False, f"no answer within {deadline_s:g} s")
        finally:
            _end_session(process)
        output.seek(0)
        lines = [line.strip() for line in output if line.strip()]
    found = [line.removeprefix(FOUND) for line in lines if line.startswith(FOUND)]
    if process.returncode == 0 and found:
        return Outcome(True, f"{found[-1]} ({time.monotonic() - started:.0f} s)")
    reason = lines[-1] if lines else "it said nothing"
    return Outcome(False, f"exit status {process.returncode}: {reason[:LONGEST_MESSAGE]}")


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """Ends the probe and what it started; Ray's daemons have left its group, and the probe's reaper ends them."""
    import contextlib

    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _deepspeed() -> str:
    import logging

    import torch
    from lightning_fabric import Fabric

    from rayrlhf.strategy import FabricDeepSpeed, prepare_environment

    logging.disable(logging.INFO)
    prepare_environment()
    import deepspeed

    cuda = torch.cuda.is_available()
    backend = "nccl" if cuda else "gloo"
    strategy = FabricDeepSpeed(stage=2, process_group_backend=backend, logging_batch_size_per_gpu=1)
    fabric = Fabric(accelerator="cuda" if cuda else "cpu", devices=1, strategy=strategy, precision="32-true")
    fabric.launch()
    network = torch.nn.Linear(4, 1)
    engine, _ = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
    loss = engine(torch.ones(2, 4, device=fabric.device)).square().mean()
    fabric.backward(loss, model=engine)
    engine._forward_module.step()
    if not all(torch.isfinite(parameter).all() for parameter in engine.parameters()):
        raise SystemExit("an optimizer step gave weights that are not finite")
    return f"{deepspeed.__version__}, ZeRO 2 over {backend}: one optimizer step"


def _ray() -> str:
    import ray

    from rayrlhf.cluster import actor_environment, ray_cluster

    @ray.remote(num_cpus=1, runtime_env=actor_environment(1))
    def process_id() -> int:
        return os.getpid()

    with ray_cluster(1, object_store_bytes=100_000_000):
        answer = ray.get(process_id.remote(), timeout=60)
        address = ray.util.get_node_ip_address()
    if answer == os.getpid():
        raise SystemExit("the task ran in the driver's own process")
    return f"{ray.__version__}: a cluster at {address} ran a task"


def _model() -> str:
    import torch

    from rayrlhf.config import ModelConfig
    from rayrlhf.policy import load_policy, load_tokenizer

    config = ModelConfig()
    tokenizer, model = load_tokenizer(config), load_policy(config)
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = model(ids).logits
    if not torch.isfinite(logits).all():
        raise SystemExit(f"{config.path} computes what is not finite")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"{config.path}, {parameters / 1e6:.2f} M parameters"


PROBES: dict[str, Callable[[], str]] = {"deepspeed": _deepspeed, "ray": _ray, "model": _model}

if __name__ == "__main__":
    print(f"\n{FOUND}{PROBES[sys.argv[1]]()}", flush=True)

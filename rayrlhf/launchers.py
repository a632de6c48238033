"""What the launchers of distributed programs leave in the environment, and how a process of ours forgets it.

A shell inside a job of Slurm, Open MPI or torchrun says which rank of which world it is. DeepSpeed, Lightning and
PyTorch believe it; the learner's world is another one. Nothing but the standard library is imported here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, MutableMapping

PREFIXES = (
    "OMPI_", "PMIX_", "ORTE_", "PRTE_",  # Open MPI
    "PMI_", "HYDRA_", "MPI_LOCAL", "MPIEXEC_", "MPIRUN_", "I_MPI_", "MV2_COMM_", "PALS_",  # MPICH, Intel MPI, MVAPICH, Cray
    "SLURM_", "SLURMD_", "SRUN_",  # Slurm
    "LSB_", "LSF_", "JSM_",  # LSF, jsrun
    "PBS_", "FLUX_",  # PBS, Flux
    "TORCHELASTIC_",  # torchrun
    "ACCELERATE_", "FSDP_",  # accelerate launch
    "PL_", "LT_",  # Lightning's own launchers: `PL_TRAINER_DEVICES`, `LT_DEVICES` and others overrule arguments
    "HOROVOD_",
    "AZUREML_", "DLTS_",  # machine learning services that DeepSpeed looks for
)  # fmt: skip
"""Kinds of variables by how their names begin."""

NAMES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE",
    "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE",
    "MASTER_ADDR", "MASTER_PORT",
    "SM_TRAINING_ENV",
)  # fmt: skip
"""Variables that any launcher of PyTorch sets, and one of a service that DeepSpeed looks for.

What says how to communicate rather than who one is stays: `NCCL_*`, `GLOO_*`, `CUDA_VISIBLE_DEVICES`.
"""


def left_by_launchers(names: Iterable[str]) -> list[str]:
    """Those of the variables' names that a launcher has set, sorted."""
    return sorted(name for name in names if name in NAMES or name.startswith(PREFIXES))


def forget_launchers(environment: MutableMapping[str, str] | None = None) -> None:
    """Removes from an environment, of this process by default, what a launcher left there."""
    environment = os.environ if environment is None else environment
    for name in left_by_launchers(list(environment)):
        del environment[name]

"""What a run brings along from where it is started: a launcher's variables, files with known names, Ray's address and
folder, a machine that is too small; and that nothing of it stays."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import psutil
import pytest
import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError
from typer.testing import CliRunner

from rayrlhf import ray_start
from rayrlhf.cli import app
from rayrlhf.cluster import actor_environment
from rayrlhf.config import RunConfig
from rayrlhf.errors import EpisodeError, InstallationError, LearnerError, RewardError, RunFolderError
from rayrlhf.games.making import cache_folder
from rayrlhf.launchers import forget_launchers, left_by_launchers
from rayrlhf.plugins import load
from rayrlhf.python_path import child_python_path, hidden_modules, last_folders
from rayrlhf.reaper import MARK, end_marked, marked
from rayrlhf.room import check_machine, check_start, machine_memory, processes_of
from rayrlhf.run_folder import refuse_taken
from rayrlhf.trainer import train
from rayrlhf.tune.capacity import at_once
from rayrlhf.worker_death import KernelKills, death_of

HIDING = ("queue", "random", "token", "types")
REWARD = """
class Turns:
    '''As many points as there were turns.'''

    def __call__(self, trajectories):
        return [float(len(trajectory.turns)) for trajectory in trajectories]
"""


# Launchers ------------------------------------------------------------------------------------------------------------


def test_what_launchers_leave_is_told_from_what_people_set() -> None:
    left = [
        "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_SIZE", "MPI_LOCALNRANKS", "SLURM_PROCID", "SLURM_JOB_NAME",
        "JSM_NAMESPACE_RANK",
        "RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "NODE_RANK",
        "ACCELERATE_USE_DEEPSPEED", "PL_TRAINER_DEVICES", "LT_DEVICES", "AZUREML_EXPERIMENT_ID",
    ]  # fmt: skip
    kept = [
        "PATH",
        "HOME",
        "NCCL_SOCKET_IFNAME",
        "GLOO_SOCKET_IFNAME",
        "CUDA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "RAY_ADDRESS",
    ]
    assert left_by_launchers([*kept, *left]) == sorted(left)
    environment = dict.fromkeys([*kept, *left], "1")
    forget_launchers(environment)
    assert list(environment) == kept


@ray.remote
class Looks:
    """Sees what an actor of ours sees."""

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def path(self) -> list[str]:
        import sndhdr  # noqa: F401 - any module that is looked for, after Ray has put the driver's folder in front

        return sys.path


@pytest.mark.parametrize("distributed", [True, False])
def test_only_actors_that_meet_forget_the_launcher(ray_cluster: None, distributed: bool) -> None:
    runtime_env = actor_environment(1, distributed)
    runtime_env["env_vars"] |= {
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "SLURM_PROCID": "3",
        "RANK": "3",
        "NCCL_DEBUG": "INFO",
    }
    actor = Looks.options(runtime_env=runtime_env, num_cpus=0.1).remote()  # type: ignore[attr-defined]
    seen = ray.get(actor.environment.remote(), timeout=300)
    ray.kill(actor)
    assert ("SLURM_PROCID" in seen, "OMPI_COMM_WORLD_LOCAL_RANK" in seen, "RANK" in seen) == (not distributed,) * 3
    assert seen["NCCL_DEBUG"] == "INFO"


# Files with names of the standard library's ---------------------------------------------------------------------------


def test_actors_look_in_the_working_folder_last(ray_cluster: None) -> None:
    actor = Looks.options(runtime_env=actor_environment(1), num_cpus=0.1).remote()  # type: ignore[attr-defined]
    path = ray.get(actor.path.remote(), timeout=300)
    ray.kill(actor)
    assert path[-1] == os.getcwd()
    assert path.count(os.getcwd()) == 1


@pytest.mark.parametrize(
    ("names", "how"),  # `types` in PYTHONPATH is left out: Python itself does not start then
    [(HIDING, "folder"), (HIDING[:-1], "PYTHONPATH")],
    ids=["folder", "PYTHONPATH"],
)
def test_a_file_with_the_name_of_a_module_hides_nothing(tmp_path: Path, names: Sequence[str], how: str) -> None:
    """A reward of the user's beside them is loaded, built in its child process and checked."""
    for name in names:
        (tmp_path / f"{name}.py").write_text('"""Of the user\'s own."""\n')
    (tmp_path / "my_reward.py").write_text(REWARD)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if how == "PYTHONPATH":
        environment["PYTHONPATH"] = str(tmp_path)
    program = Path(sys.executable).with_name("rayrlhf")
    done = subprocess.run(
        [program, "rewards", "test", "my_reward:Turns"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks passed" in done.stdout
    assert not done.stderr


def test_a_plugin_in_a_file_with_a_taken_name_is_told_to_rename_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "types.py").write_text(REWARD)
    with pytest.raises(
        RewardError, match=r"`types` is a module of Python's standard library.*your types\.py.*another name"
    ):
        load("reward", "types:Turns")
    (tmp_path / "psutil.py").write_text(REWARD)
    with pytest.raises(RewardError, match=r"`psutil` is an installed package \(.*\), which hides your psutil\.py"):
        load("reward", "psutil:Turns")


def test_folders_that_hide_the_standard_library_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, hiding, harmless = tmp_path / "here", tmp_path / "hiding", tmp_path / "harmless"
    for folder in (here, hiding, harmless):
        folder.mkdir()
    (hiding / "logging").mkdir()
    (hiding / "queue.py").touch()
    (hiding / "notes.txt").touch()
    (harmless / "mine.py").touch()
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (here, hiding, harmless))))
    assert hidden_modules(str(hiding)) == ["logging", "queue"]
    assert last_folders() == [str(hiding), str(here)]
    assert child_python_path() == str(harmless)


# Ray's address and folder ---------------------------------------------------------------------------------------------


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody answers at, and that nobody else can take meanwhile: it is bound, and does not listen."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:{port}", "no Ray cluster answers there"),
        ("no-such-host.invalid:6379", "no Ray cluster answers there"),
        ("ray://127.0.0.1:{port}", "Ray's client"),
        ("http://127.0.0.1:8265", "no head node's HOST:PORT"),
        ("somewhere", "is no HOST:PORT"),
        ("127.0.0.1:99999", "no Ray cluster answers there"),
    ],
)
def test_an_address_that_leads_nowhere_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, closed_port: int, address: str, said: str
) -> None:
    address = address.format(port=closed_port)

    def resolve(host: str, *_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    if "invalid" in address:  # some resolvers answer with a page of their own
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InstallationError) as caught:
        check_start({})
    assert said in str(caught.value)
    assert f"RAY_ADDRESS={address}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_too_long_for_sockets_is_replaced_by_a_shorter_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    long = tmp_path / ("x" * 60)
    monkeypatch.setenv(variable, str(long))
    chosen = ray_start.temporary_folder()
    sockets = chosen / "session_2026-11-28_10-00-00_123456_4194304/sockets/plasma_store"
    assert len(os.fsencode(sockets)) <= 107
    assert str(long) in caplog.text


def test_the_usual_folder_stays_where_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_UNIX) as one:  # the longest that the system takes
        longest = (uuid.uuid4().hex * 4)[: 107 - len(ray_start._SOCKET_BELOW) - len("/tmp/") - len("/ray")]
        folder = Path("/tmp") / longest
        assert not ray_start.unfit(folder / "ray")
        assert ray_start.unfit(folder.with_name(f"{longest}x") / "ray")
        path = Path(f"{folder}/ray{ray_start._SOCKET_BELOW}")
        path.parent.mkdir(parents=True)
        one.bind(str(path))
    path.unlink()
    for parent in list(path.parents)[:4]:
        parent.rmdir()
    assert not caplog.text


def test_a_home_that_cannot_be_written_needs_no_file_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    ray_start._bring_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    ray_start._bring_token()
    assert len(os.environ.pop("RAY_AUTH_TOKEN")) == 64


def test_a_user_without_a_home_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is run under the number of a user whom it does not know."""

    def unknown(number: int) -> NoReturn:
        raise KeyError(number)

    for name in ("HOME", "RAYRLHF_CACHE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 60)))  # another folder is looked for
    assert ray_start.temporary_folder().name.startswith("ray")
    ray_start._bring_token()
    assert len(os.environ.pop("RAY_AUTH_TOKEN")) == 64
    with pytest.raises(EpisodeError, match=r"~/\.cache/rayrlhf: there is no such home folder"):
        cache_folder()


# Room -----------------------------------------------------------------------------------------------------------------


def test_more_processes_than_memory_has_room_for_are_refused_with_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig.model_validate(
        {"rollout": {"workers": 100_000}, "reward": [{"name": "alliteration", "actors": 3}]}
    )
    assert processes_of(config) == {"rollout.workers": 100_000, "learner.ranks": 2, "reward.0.actors": 3}
    with pytest.raises(
        LearnerError, match=r"rollout\.workers 100000.*16 GB of this machine; rollout\.workers up to 59"
    ):
        check_machine(processes_of(config), memory=16 * 10**9)
    check_machine({"rollout.workers": 59, "learner.ranks": 2, "reward.0.actors": 3}, memory=16 * 10**9)
    check_machine(processes_of(RunConfig()), memory=2 * 10**9)  # a laptop runs more processes than it has cores


def test_trials_side_by_side_are_bounded_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = RunConfig()  # 2 workers, 2 ranks, and a driver a trial
    most = machine_memory() // 250_000_000 // 5
    assert at_once(most, [config]) == most
    with pytest.raises(LearnerError, match=rf"sweep\.max_concurrent {most + 1}: .* lower it to {most}"):
        at_once(most + 1, [config])
    large = RunConfig.model_validate({"learner": {"ranks": 100_000}})
    with pytest.raises(LearnerError, match=r"learner\.ranks 100000.*learner\.ranks up to \d+ would"):
        at_once(None, [config, large])


def test_a_container_has_the_memory_that_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "unlimited").write_text("max\n")
    assert machine_memory([tmp_path / "memory.max", tmp_path / "unlimited", tmp_path / "missing"]) == 1_000_000_000


def test_a_name_in_use_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {"storage_path": str(tmp_path), "name": "taken", "model": {"path": "/no/such/model"}}
    )
    (tmp_path / "taken").mkdir()
    refuse_taken(config)  # an empty folder is no run's
    (tmp_path / "taken/config.yaml").touch()
    (tmp_path / "taken/metrics.jsonl").write_text('{"iteration": 0}\n')
    with pytest.raises(RunFolderError, match="'taken' is in use"):
        train(config)


@pytest.mark.parametrize(
    ("workers", "address", "error", "said"),
    [
        (100_000, "", LearnerError, r"rollout\.workers 100000.*do not fit"),
        (1, "127.0.0.1:99999", InstallationError, "no Ray cluster answers there"),
    ],
)
def test_what_ray_could_not_hold_or_reach_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int, address: str, error: type[Exception], said: str
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    told = {"storage_path": str(tmp_path), "model": {"path": "/no/such/model"}, "rollout": {"workers": workers}}
    with pytest.raises(error, match=said):
        train(RunConfig.model_validate(told))
    assert list(tmp_path.iterdir()) == []


# Processes that are gone, and those that must go ----------------------------------------------------------------------

MONITOR = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 0d55) \
was 22.79GB used / 23.54GB limit (0.968280)
Selected to kill: (Actor(514b): job ID=01, lease ID=00, task name=A.__init__, pid=8610, actual memory used=9.05GB)"""
VANISHED = """The actor died unexpectedly before finishing this task.
\tclass_name: A
\tpid: 16422
\tip: 10.0.0.7
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file."""


def test_a_worker_that_rays_monitor_ended_is_named_with_its_memory() -> None:
    died = death_of(OutOfMemoryError(MONITOR))
    assert str(died) == (
        "Ray's memory monitor ended its process 8610 on 10.0.0.7, for the memory of its machine ran out "
        "(22.79GB of 23.54GB in use)"
    )
    assert died.advice("lower this") == ": lower this"


def test_a_worker_that_the_kernel_ended_is_named_by_the_kernels_count(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("nr_free_pages 7\noom_kill 4\n")
    kills = KernelKills(vmstat)
    error = ActorDiedError()
    error.error_msg = VANISHED
    unsure = death_of(error, kills)
    assert not unsure.memory
    assert "process 16422 on 10.0.0.7 was killed or crashed" in str(unsure)
    vmstat.write_text("nr_free_pages 7\noom_kill 5\n")
    sure = death_of(error, kills)
    assert sure.memory
    assert "process 16422 on 10.0.0.7 was killed, and the kernel says that memory ran out" in str(sure)
    assert not death_of(error, kills).memory  # each kill is told once


def wait_for_mark(mark: str, pid: int) -> None:
    """A process shows its environment a moment after whoever started it goes on."""
    deadline = time.monotonic() + 60
    while pid not in [process.pid for process in marked(mark)]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_within_another_belongs_to_both() -> None:
    program = "import os; from rayrlhf.reaper import MARK, reaped\nwith reaped(): print(os.environ[MARK])"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, MARK: "outer"}, capture_output=True, text=True, check=True
    )
    outer, inner = done.stdout.strip().split(",")
    assert outer == "outer"
    within = subprocess.Popen(["sleep", "600"], env={**os.environ, MARK: f"{outer},{inner}"})
    wait_for_mark(inner, within.pid)
    assert end_marked(inner, grace_s=0.1) == [within.pid]
    within.wait()


def test_a_process_that_has_written_a_title_over_its_environment_is_known() -> None:
    """As Ray's agents do: nothing that reads names and values finds the mark there."""
    mark = uuid.uuid4().hex
    titled = "from ray._raylet import setproctitle; setproctitle('ray::Agent'); print(flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{titled}; import time; time.sleep(600)", "x" * 300],
        env={**os.environ, MARK: mark}, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    assert MARK not in psutil.Process(process.pid).environ()
    assert end_marked(mark, grace_s=0.1) == [process.pid]
    process.wait()


RUNS_ON = """
import os, subprocess, sys, time
from rayrlhf.reaper import MARK, reaped
with reaped():
    orphan = 'import subprocess, sys; print(subprocess.Popen(["sleep", "600"], start_new_session=True).pid, flush=True)'
    subprocess.run([sys.executable, "-c", orphan])
    print(os.environ[MARK], flush=True)
    time.sleep(600)
"""


def test_what_a_killed_driver_has_started_ends_with_it_wherever_it_went() -> None:
    """SIGKILL, which nobody can act on; a grandchild in a session of its own, whose parent is gone."""
    another = uuid.uuid4().hex
    bystander = subprocess.Popen(["sleep", "600"], env={**os.environ, MARK: another})
    driver = subprocess.Popen([sys.executable, "-c", RUNS_ON], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    orphan, mark = psutil.Process(int(driver.stdout.readline())), driver.stdout.readline().strip()
    wait_for_mark(mark, orphan.pid)
    wait_for_mark(another, bystander.pid)
    driver.kill()
    _, alive = psutil.wait_procs([orphan], timeout=15)
    assert not alive
    assert bystander.poll() is None
    assert end_marked(another, grace_s=0.1) == [bystander.pid]
    bystander.wait()


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])  # ASCII is UTF-8 to click, and has the next test
def test_what_a_terminal_cannot_show_is_escaped_and_stops_nothing(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rayrlhf", "train", "--dry-run", "alliteration", "environment.prompts.text=\u96ea"],
        env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "text: \\u96ea\n" in done.stdout


def test_rich_text_goes_to_a_terminal_without_unicode() -> None:
    words = ["generate", "tiny-stories", "-n", "1", "--max-new-tokens", "2", "--prompt", "\u96ea"]
    done = subprocess.run(
        [sys.executable, "-m", "rayrlhf", *words],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\\u96ea" in done.stdout


@pytest.mark.parametrize(
    ("package", "command", "extra"),
    [
        ("fastapi", ["rate", "no-such-project"], "rating"),
        ("uvicorn", ["rate", "no-such-project"], "rating"),
        ("optuna", ["sweep", "alliteration", "algorithm.kl.coef=uniform:0.1..1", "sweep.search.kind=optuna"], "sweep"),
    ],
)
def test_the_absence_of_an_extra_is_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, package: str, command: list[str], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, InstallationError), result.output
    assert package in str(result.exception)
    assert f"pip install 'rayrlhf[{extra}]'" in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.mark.parametrize("command", ["rewards", "envs", "labels"])
def test_no_command_offers_to_write_into_the_shells_start_file(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert "completion" not in result.output
    assert CliRunner().invoke(app, [command, "--install-completion"]).exit_code != 0

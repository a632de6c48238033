"""`RewardProcess`: rewards that hang, crash or talk cannot harm the run, and no process is left behind.

TOOLCHAIN's fact under test: a time limit in a thread does not hold against a regular expression that backtracks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from rayrlhf.config import RewardPart
from rayrlhf.errors import RewardError
from rayrlhf.reward_contract import example_trajectory
from rayrlhf.reward_mixture import RewardMixture
from rayrlhf.reward_process import RewardProcess

FIXTURES = Path(__file__).parent / "fixtures"
EPISODE = example_trajectory("Once upon a time", " two tiny tigers!")
HANGING_EPISODE = example_trajectory("Once upon a time", " hang")
GENEROUS_S = 60.0


@pytest.fixture(autouse=True)
def working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FIXTURES)


def part(name: str, **parameters: Any) -> RewardPart:
    return RewardPart.model_validate({"name": name, **parameters})


def process_of(name: str, timeout_s: float = GENEROUS_S, **parameters: Any) -> RewardProcess:
    return RewardProcess([part(f"user_rewards:{name}", **parameters)], timeout_s)


def line_of(code: str) -> int:
    lines = (FIXTURES / "user_rewards.py").read_text().splitlines()
    return 1 + next(index for index, line in enumerate(lines) if code in line)


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_scores_as_the_mixture_does_in_this_process() -> None:
    parts = [part("alliteration"), part("letter-count", letter="t", weight=0.1), part("user_rewards:judged", weight=2)]
    episodes = [EPISODE, example_trajectory("", "", ("\ud800", "tt")), HANGING_EPISODE]
    with RewardProcess(parts, GENEROUS_S) as process:
        assert process.keys == ("alliteration", "letter_count", "user_rewards:judged")
        for there, here in zip(process.score(episodes), RewardMixture(parts).score(episodes), strict=True):
            assert there.total.tobytes() == here.total.tobytes()
            assert there.parts == here.parts
        assert process.score([]) == []


def test_batches_larger_than_a_pipes_buffer() -> None:
    episodes = [example_trajectory("", "ta " * 20_000, index=index) for index in range(20)]
    with RewardProcess([part("letter_count", letter="t")], GENEROUS_S) as process:
        assert [float(one.total[0]) for one in process.score(episodes)] == [20_000] * 20


def test_the_child_imports_neither_heavy_packages_nor_the_callers_main(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        "import os; assert not os.environ.get('SEEN'), 'imported again'; os.environ['SEEN'] = '1'\n"
        "from rayrlhf.config import RewardPart\nfrom rayrlhf.reward_process import RewardProcess\n"
        "from rayrlhf.reward_contract import example_trajectory\n"
        "names = ('alliteration', 'user_rewards:modules', 'user_rewards:main_file')\n"
        "with RewardProcess([RewardPart(name=name) for name in names], 60) as process:\n"
        "    print(dict(process.score([example_trajectory('', 'x')])[0].parts))\n"
    )  # no `if __name__ == '__main__'`: an import of it in the child would start a process without end
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "{'alliteration': 0.0, 'user_rewards:modules': 0.0, 'user_rewards:main_file': 1.0}\n", done


def test_a_regular_expression_that_holds_the_lock_is_stopped_and_named_with_its_line() -> None:
    parts = [part("alliteration"), part("user_rewards:backtracks", on="hang"), part("user_rewards:shouting")]
    with RewardProcess(parts, timeout_s=2.0) as process:
        assert process.score([EPISODE])[0].total.tolist() == [3 + 1 + 1]
        child = process.pid
        assert child is not None
        expected = (
            rf"^reward `user_rewards:backtracks` took longer than 2 s to score a batch "
            rf"\(at user_rewards\.py:{line_of('re.match')}\) and was stopped\. `reward_timeout_s`"
        )
        for _ in range(2):
            with pytest.raises(RewardError, match=expected):
                process.score([EPISODE, HANGING_EPISODE])
        assert not is_running(child)
        assert process.score([EPISODE])[0].total.tolist() == [3 + 1 + 1]
        assert process.pid != child


@pytest.mark.parametrize(("name", "place"), [("sleeps", r" \(at user_rewards\.py:\d+\)"), ("waits", "")])
def test_rewards_that_sleep_or_wait_are_stopped(name: str, place: str) -> None:
    parts = [part("user_rewards:judged"), part(f"user_rewards:{name}"), part("user_rewards:judged", delay_s=0.01)]
    with (
        RewardProcess(parts, timeout_s=2.0) as process,
        pytest.raises(
            RewardError, match=rf"^reward `user_rewards:{name}` took longer than 2 s to score a batch{place} and"
        ),
    ):
        process.score([EPISODE])


def test_a_reward_that_hangs_at_its_start_is_stopped_and_named() -> None:
    with pytest.raises(
        RewardError, match=r"`user_rewards:HangsAtStart` took longer than 4 s to load \(at user_rewards"
    ):
        RewardProcess([part("length"), part("user_rewards:HangsAtStart")], timeout_s=60, load_timeout_s=4)


def test_a_reward_that_cannot_be_built_is_told_at_the_start() -> None:
    with pytest.raises(RewardError, match="did you mean `alliteration`"):
        RewardProcess([part("aliteration")], GENEROUS_S)
    with pytest.raises(RewardError, match=r"broken_on_import\.py:3: NameError"):
        RewardProcess([part("broken_on_import:x")], GENEROUS_S)
    with pytest.raises(RewardError, match="has no parameter `word`"):
        RewardProcess([part("length", word="x")], GENEROUS_S)


def test_a_program_that_a_reward_started_is_killed_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with process_of("starts_a_program", timeout_s=3.0, pid_file=str(pid_file)) as process:
        with pytest.raises(RewardError, match="took longer"):
            process.score([EPISODE])
        assert wait_until(lambda: not is_running(int(pid_file.read_text())))


def test_an_exception_is_told_with_the_users_line_and_the_child_lives_on() -> None:
    with process_of("divides") as process:
        child = process.pid
        line = line_of("faulty")
        expected = rf"`user_rewards:divides` raised ZeroDivisionError: division by zero, at user_rewards\.py:{line}"
        with pytest.raises(RewardError, match=expected):
            process.score([EPISODE, HANGING_EPISODE])
        assert process.score([EPISODE])[0].total.tolist() == [1]
        assert process.pid == child


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exits", r"exit code 3\.$"),
        ("crashes", r"exit code -11, SIGSEGV \(at user_rewards\.py:\d+\)\.$"),
        ("runs_out_of_memory", r"exit code -9, SIGKILL \(the system sends it when memory runs out\)"),
    ],
)
def test_a_reward_that_ends_its_process_is_told_with_the_exit_code(name: str, message: str) -> None:
    with process_of(name) as process:
        for _ in range(2):
            with pytest.raises(RewardError, match=rf"^reward `user_rewards:{name}` ended the process .*: {message}"):
                process.score([EPISODE])


def test_scoring_goes_on_after_a_crash() -> None:
    with process_of("exits", on="hang") as process:
        with pytest.raises(RewardError, match="exit code 3"):
            process.score([EPISODE, HANGING_EPISODE])
        assert process.score([EPISODE])[0].total.tolist() == [1]


def test_a_child_that_died_between_batches_is_replaced() -> None:
    with process_of("process_id") as process:
        child = process.pid
        assert child is not None
        os.kill(child, signal.SIGKILL)
        assert wait_until(lambda: not is_running(child))
        assert int(process.score([EPISODE])[0].parts["user_rewards:process_id"]) == process.pid != child


def test_a_child_whose_death_is_not_seen_yet_is_replaced() -> None:
    with process_of("process_id") as process:
        for _ in range(3):
            child = process.pid
            assert child is not None
            os.kill(child, signal.SIGKILL)
            assert int(process.score([EPISODE])[0].parts["user_rewards:process_id"]) == process.pid != child


def test_what_a_reward_prints_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with process_of("prints") as process:
        assert process.score([EPISODE, EPISODE])[1].total.tolist() == [1]
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "printed \\ud800writtenmore\n" * 2


def test_a_reward_that_asks_gets_no_answer_at_once() -> None:
    with process_of("asks") as process, pytest.raises(RewardError, match="`user_rewards:asks` raised EOFError"):
        process.score([EPISODE])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_stop_are_left_to_the_parent(number: signal.Signals) -> None:
    """Ctrl-C reaches the process group of the terminal, a scheduler's SIGTERM each process: a batch still ends."""
    with process_of("process_id") as process:
        child = process.pid
        assert child is not None
        assert os.getpgid(child) != os.getpgid(0)
        os.kill(child, number)
        assert int(process.score([EPISODE])[0].parts["user_rewards:process_id"]) == child


def test_an_interrupted_parent_does_not_take_the_old_answer_for_the_next() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with process_of("judged", delay_s=2.0) as process:
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            with pytest.raises(KeyboardInterrupt):
                process.score([EPISODE])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert process.score([HANGING_EPISODE])[0].total.tolist() == [len(HANGING_EPISODE.text)]


@pytest.mark.skipif(
    sys.platform != "linux", reason="on Linux alone: elsewhere the lock that a reward holds delays its end"
)
@pytest.mark.parametrize("busy", [False, True])
def test_the_child_dies_with_a_parent_that_is_killed(busy: bool) -> None:
    """SPEC X-8; SIGKILL of the parent, while the child waits and while a reward in it holds the interpreter's lock."""
    code = (
        "import sys, threading, time\nfrom rayrlhf.config import RewardPart\n"
        "from rayrlhf.reward_process import RewardProcess\nfrom rayrlhf.reward_contract import example_trajectory\n"
        "process = RewardProcess([RewardPart(name='user_rewards:backtracks')], 600)\nprint(process.pid, flush=True)\n"
        f"if {busy}: process.score([example_trajectory('', 'x')])\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        if busy:
            seconds = sum(child.cpu_times()[:2])
            assert wait_until(lambda: sum(child.cpu_times()[:2]) > seconds + 0.3)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert wait_until(lambda: not is_running(child.pid))


def test_the_child_outlives_the_thread_that_made_it() -> None:
    """Linux tells a child of its parent's death when the thread that started it ends."""
    made: list[RewardProcess] = []
    maker = threading.Thread(target=lambda: made.append(process_of("process_id")))
    maker.start()
    maker.join()
    with made[0] as process:
        child = process.pid
        time.sleep(0.2)
        assert int(process.score([EPISODE])[0].parts["user_rewards:process_id"]) == child


def test_threads_take_turns() -> None:
    found: dict[int, float] = {}
    with RewardProcess([part("length", unit="words")], GENEROUS_S) as process:

        def score(words: int) -> None:
            found[words] = float(process.score([example_trajectory("", "x " * words)])[0].total[0])

        threads = [threading.Thread(target=score, args=(words,)) for words in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {words: words for words in range(8)}


def test_close_leaves_no_process_and_may_be_repeated() -> None:
    process = process_of("shouting")
    child = process.pid
    assert child is not None
    process.close()
    process.close()
    assert not is_running(child)
    with pytest.raises(RuntimeError, match="closed"):
        process.score([EPISODE])


def test_no_file_descriptor_is_left_open() -> None:
    def use() -> None:
        with process_of("exits") as process, pytest.raises(RewardError):
            process.score([EPISODE])

    use()
    before = psutil.Process().num_fds()
    use()
    assert psutil.Process().num_fds() == before

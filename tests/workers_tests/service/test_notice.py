"""Notice to leave: real signals to real processes."""

import signal
import subprocess
import sys
import textwrap

import pytest
from support.checkout import ROOT

PROGRAM = """
import atexit, sys, time
from workers.service import notice
from workers.service.notice import Notice

notice.LEAVE_SECONDS, notice.HAND_BACK_SECONDS, notice.ECHO_SECONDS = {limits}

def hand_back():
    print("handed back", flush=True)
    {hand_back}

with Notice(hand_back) as given:
    print("ready", flush=True)
    {work}
    print("ended in order", flush=True)
sys.exit(7)
"""
WAIT = "given.stop.wait()"
HANG = "time.sleep(3600)"
SOON, LATE = (0.4, 0.2, 0.0), (3600, 5, 0.0)


def start(
    work: str, limits: tuple[float, float, float] = LATE, hand_back: str = "pass"
) -> subprocess.Popen[str]:
    program = PROGRAM.format(limits=limits, work=work, hand_back=hand_back)
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, said


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_the_first_signal_asks_to_stop(number: str) -> None:
    process = start(WAIT)
    process.send_signal(signal.Signals[number])
    assert end(process) == (7, "ended in order\n")


def test_a_second_signal_ends_at_once() -> None:
    process = start(f"{WAIT}; print('told', flush=True); {HANG}")
    process.send_signal(signal.SIGUSR1)
    assert process.stdout is not None
    assert process.stdout.readline() == "told\n"
    process.send_signal(signal.SIGTERM)
    assert end(process) == (130, "")


def test_the_same_signal_to_process_and_group_is_one() -> None:
    process = start(f"{WAIT}; print('told', flush=True); {HANG}", (3600, 5, 3600))
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "told\n"
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.kill()
    process.communicate()


def test_what_is_not_done_in_time_is_handed_back_and_the_process_ends() -> None:
    process = start(HANG, SOON)
    process.send_signal(signal.SIGTERM)
    assert end(process) == (130, "handed back\n")


def test_a_database_that_hangs_does_not_keep_the_process() -> None:
    process = start(HANG, SOON, hand_back=HANG)
    process.send_signal(signal.SIGTERM)
    assert end(process) == (130, "handed back\n")


def test_the_time_limit_holds_for_what_comes_after_the_block() -> None:
    process = start(f"{WAIT}; atexit.register(time.sleep, 3600)", SOON)
    process.send_signal(signal.SIGTERM)
    assert end(process) == (130, "ended in order\nhanded back\n")


def test_without_a_signal_the_block_leaves_everything_as_it_was() -> None:
    run("""
        with Notice(print):
            pass
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
        assert signal.set_wakeup_fd(-1) == -1
        assert threading.active_count() == 1
    """)


def test_an_ignored_signal_stays_ignored() -> None:
    """As SIGHUP is under nohup."""
    run("""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Notice(print) as given:
            signal.raise_signal(signal.SIGHUP)
            assert not given.stop.wait(0.3)
    """)


def run(program: str) -> None:
    head = "import signal, threading\nfrom workers.service.notice import Notice\n"
    program = head + textwrap.dedent(program)
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, check=True, timeout=60)

"""Commands beside each other: the signals that reach them, and those that do not."""

import contextlib
import os
import signal
from collections.abc import Iterator

from commands import start
from waits import HANGS

PROGRAM = """
import concurrent.futures, os, signal, subprocess, sys, threading, time
from crs_jax.tools.sweep import children
from crs_jax.runtime.errors import InterruptedRunError
start = subprocess.Popen

def interrupted(line, **settings):
    run, end = os.pipe()
    process = start(line, **{**settings, "stdout": end})
    assert os.read(run, 100) == b"begun\\n"  # the run could save from here on
    signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
    while not children._asked:
        time.sleep(0.01)
    return process

if sys.argv[2] == "at the start":
    subprocess.Popen = interrupted
try:
    with children.passing_on(), concurrent.futures.ThreadPoolExecutor(1) as pool:
        work = pool.submit(children.execute, [sys.executable, "-c", sys.argv[1]], None, None)
        work.result()
        raise InterruptedRunError(children._asked[0])
except InterruptedRunError as stop:
    print(stop, work.result().returncode, flush=True)
"""


@contextlib.contextmanager
def hang_up(handler: signal.Handlers) -> Iterator[None]:
    """What is started meanwhile begins with this way to take SIGHUP."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_while_a_command_is_started_reaches_it():
    process = start(PROGRAM, "at the start")
    out, said = process.communicate(timeout=HANGS)
    assert (out, said) == ("ended by SIGTERM 143\n", "saved 15\n")


def test_a_hang_up_that_nohup_ignores_stays_ignored():
    """The terminal signals the whole group; SIGTERM still reaches the command, which saves."""
    with hang_up(signal.SIG_IGN):
        process = start(PROGRAM, "nohup", process_group=0)
    assert process.stdout.readline() == "begun\n"
    os.killpg(process.pid, signal.SIGHUP)
    os.killpg(process.pid, signal.SIGTERM)
    out, said = process.communicate(timeout=HANGS)
    assert said == "saved 15\n"
    assert out.endswith("ended by SIGTERM 143\n")
    assert "SIGHUP" not in out


def test_a_terminal_that_is_gone_keeps_no_signal_from_the_command():
    with hang_up(signal.SIG_DFL):  # also where the tests were started by nohup
        process = start(PROGRAM, "hang-up")
    assert process.stdout.readline() == "begun\n"
    process.stdout.close()  # what is said of the signal fails
    process.send_signal(signal.SIGHUP)
    assert "saved 15\n" in process.stderr.read()
    process.wait(timeout=HANGS)

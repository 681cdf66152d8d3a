"""A pool survives its workers: what one was working on is done again, and only what ends every worker is given up."""

import errno
import os
import subprocess
import sys
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest
from parallel_workers import HOW, dies_at_once, makes_functions, nothing, squares

from trace_vlm.utils.command import InputError
from trace_vlm.utils.parallel import TRIES, Pool, WorkerDied


@pytest.mark.parametrize("how", HOW)
def test_an_item_is_done_again_by_another_worker_and_given_up_when_it_ends_all(how, tmp_path, capfd):
    items = [1, (how, 1), 2, (how, 99), (how, 2), *range(3, 9)]
    with Pool(2, squares, tmp_path) as pool:
        results = dict(pool.in_order(items))
    with pytest.raises(WorkerDied) as error:
        results.pop((how, 99)).result()
    assert HOW[how] in str(error.value) and (tmp_path / f"{how}99").stat().st_size == TRIES
    expected = {(how, 1): -1, (how, 2): -1} | {item: item**2 for item in range(1, 9)}
    assert {item: result.result() for item, result in results.items()} == expected
    assert HOW[how] in capfd.readouterr().err


def test_an_exception_arrives_as_it_was_raised_and_the_worker_goes_on(tmp_path):
    with Pool(1, squares, tmp_path) as pool:
        (_, wrong), (_, right) = pool.in_order([-3, 3])
    with pytest.raises(InputError, match="-3") as error:
        wrong.result()
    assert "in squares" not in str(error.value) and "parallel_workers.py" in "".join(error.value.__notes__)
    assert right.result() == 9


def test_values_are_drawn_a_few_ahead_and_may_be_asked_for_within(tmp_path):
    drawn = []
    with Pool(2, squares, tmp_path) as pool:
        for number, result in pool.in_order(drawn.append(n) or n for n in range(100)):
            assert result.result() == number**2 and len(drawn) <= number + 10
            if number == 5:
                assert [inner.result() for _, inner in pool.in_order([20, 30])] == [400, 900]


@pytest.mark.parametrize("start, error", [(nothing, InputError), (dies_at_once, WorkerDied)])
def test_workers_that_do_not_start_fail_every_item(start, error, tmp_path):
    with Pool(2, start, tmp_path) as pool:
        for _, result in pool.in_order(range(20)):
            with pytest.raises(error, match="no key here|exit code 3"):
                result.result()


def test_what_cannot_be_sent_to_a_worker_or_back_fails_alone(tmp_path):
    with Pool(1, makes_functions) as pool:
        (_, item), (_, result), (_, good) = pool.in_order([lambda: None, "function", "text"])
    for one in (item, result):
        with pytest.raises(Exception, match="pickle"):
            one.result()
    assert good.result() == "text"


def test_a_worker_that_cannot_be_replaced_fails_what_is_left(tmp_path, monkeypatch):
    def no_process(process):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with Pool(1, squares, tmp_path) as pool:
        monkeypatch.setattr(SpawnProcess, "start", no_process)
        (_, good), (_, lost) = pool.in_order([1, ("KILL", 1)])
    assert good.result() == 1
    with pytest.raises(WorkerDied, match="Cannot allocate memory"):
        lost.result()


PROGRAM = """
import os, signal
from parallel_workers import names_itself
from trace_vlm.utils.parallel import Pool

if __name__ == "__mp_main__":
    os.kill(os.getpid(), {signal})
if __name__ == "__main__":
    with Pool(2, names_itself) as pool:
        for _, pid in pool.in_order({seconds}):
            print(pid.result(), flush=True)
"""


def start_program(folder, signal, seconds):
    script = folder / "program.py"
    script.write_text(PROGRAM.format(signal=signal, seconds=seconds))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    options = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, str(script)], env=environment, **options)


def test_an_interrupt_does_not_end_a_worker_that_starts(tmp_path):
    """Ctrl-C reaches all processes; the first one answers it, and the others would print their tracebacks."""
    process = start_program(tmp_path, "signal.SIGINT", [0])
    assert process.communicate()[1] == "" and process.returncode == 0


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    process = start_program(tmp_path, 0, [0.1] * 4 + [1000, 1000])
    pids = {int(process.stdout.readline()) for _ in range(4)}
    process.kill()
    process.wait()
    while any(map(is_alive, pids)):  # the test's own time limit is the only one
        time.sleep(0.05)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

"""A pool survives its workers: what one was working on is done again, and only what ends every worker is given up."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from parallel_workers import HOW, dies_at_once, makes_functions, names_itself, nothing, slow_squares, squares

from trace_vlm.utils.command import InputError
from trace_vlm.utils.parallel import TRIES, Pool, WorkerDied


@pytest.mark.parametrize("how", HOW)
def test_a_worker_that_ends_is_replaced_and_its_item_is_done_again(how: str, tmp_path: Path, capfd) -> None:
    items = [1, 2, (how, 1), 3, 4, (how, 2), 5]
    with Pool(2, squares, tmp_path) as pool:
        assert [result.result() for _, result in pool.in_order(items)] == [1, 4, -1, 9, 16, -1, 25]
    told = capfd.readouterr().err
    assert told.count(f"a worker process ended ({HOW[how]}); it is replaced and its work is done again") == 3


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("start", [squares, slow_squares], ids=["one at a time", "several"])
def test_an_item_that_ends_every_worker_is_given_up_and_all_others_are_done(how: str, start, tmp_path: Path) -> None:
    items = [*range(1, 6), (how, 99), *range(6, 12)]
    with Pool(2, start, tmp_path, lanes=1 if start is squares else 8) as pool:
        results = dict(pool.in_order(items))
    with pytest.raises(WorkerDied) as error:
        results.pop((how, 99)).result()
    assert str(error.value) == f"its worker process ended {TRIES} times, the last time by {HOW[how]}"
    assert {item: result.result() for item, result in results.items()} == {item: item**2 for item in range(1, 12)}
    assert (tmp_path / f"{how}99").stat().st_size == TRIES


def test_an_exception_arrives_as_it_was_raised_and_the_worker_goes_on(tmp_path: Path) -> None:
    with Pool(1, squares, tmp_path) as pool:
        wrong, right = pool.submit(-3), pool.submit(3)
        with pytest.raises(InputError, match="-3 is negative") as error:
            wrong.result()
        assert "in squares" not in str(error.value) and "parallel_workers.py" in "".join(error.value.__notes__)
        assert right.result() == 9


@pytest.mark.parametrize("start,error", [(nothing, InputError), (dies_at_once, WorkerDied)])
def test_workers_that_do_not_start_fail_every_item(start, error, tmp_path: Path) -> None:
    with Pool(2, start, tmp_path) as pool, pytest.raises(error, match="no key here|before they have started: exit"):
        pool.submit(1).result()


def test_an_item_nobody_waits_for_makes_room(tmp_path: Path) -> None:
    with Pool(1, slow_squares, tmp_path, lanes=2) as pool:
        stuck = [pool.submit(0), pool.submit(0)]
        waiting = pool.submit(5)
        for one in stuck:
            assert one.cancel()
        assert waiting.result(60) == 25


def test_what_cannot_be_sent_to_a_worker_or_back_fails_alone(tmp_path: Path) -> None:
    with Pool(1, makes_functions) as pool:
        item, result, good = pool.submit(lambda: None), pool.submit("function"), pool.submit("text")
        for one in (item, result):
            with pytest.raises(Exception, match="pickle"):
                one.result(60)
        assert good.result(60) == "text"


def test_a_long_queue_is_cancelled_at_the_end(tmp_path: Path) -> None:
    pool = Pool(1, squares, tmp_path)
    pool.submit(1).result()
    waiting = [pool.submit(1) for _ in range(100_000)]  # more than the pipe that wakes the pool holds
    pool.close()
    assert all(one.done() for one in waiting)


def test_a_worker_that_cannot_be_replaced_fails_what_is_left(tmp_path: Path, monkeypatch) -> None:
    with Pool(1, squares, tmp_path) as pool:
        pool.submit(1).result()
        monkeypatch.setattr(pool, "_spawn", no_process)
        with pytest.raises(WorkerDied, match="no other worker process can be started: .*Cannot allocate memory"):
            pool.submit(("KILL", 1)).result(60)


def no_process() -> None:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def test_an_interrupt_does_not_end_a_worker_that_starts(tmp_path: Path) -> None:
    """Ctrl-C reaches all processes; the first one answers it, and the others would print their tracebacks."""
    program = """
        import os, signal
        from parallel_workers import names_itself
        from trace_vlm.utils.parallel import Pool

        if __name__ == "__mp_main__":
            os.kill(os.getpid(), signal.SIGINT)
        if __name__ == "__main__":
            with Pool(1, names_itself) as pool:
                pool.submit(None).result()
    """
    process = _program(program, tmp_path, stderr=subprocess.PIPE)
    assert process.communicate()[1] == "" and process.returncode == 0


def test_items_of_one_home_go_to_one_worker(tmp_path: Path) -> None:
    with Pool(2, names_itself, lanes=4) as pool:
        while len({result.result() for _, result in pool.in_order(range(8))}) < 2:
            pass  # until both have started
        homes = [{pool.submit(None, home).result() for _ in range(5)} for home in "abcdef"]
    assert all(len(one) == 1 for one in homes) and len(set.union(*homes)) == 2


def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    program = """
        import sys
        from parallel_workers import slow_squares
        from pathlib import Path
        from trace_vlm.utils.parallel import Pool

        if __name__ == "__main__":
            pool = Pool(2, slow_squares, Path(sys.argv[1]), lanes=2)
            for item in (1, 2, 3):
                pool.submit(item).result()
            pool.submit(0)
            print(*(worker.process.pid for worker in pool._workers), flush=True)
            sys.stdin.read()
    """
    process = _program(program, tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    pids = list(map(int, process.stdout.readline().split()))
    assert len(pids) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(map(_alive, pids)):  # the test's own time limit is the only one
        time.sleep(0.05)


def _program(text: str, folder: Path, **options: Any) -> subprocess.Popen[str]:
    script = folder / "program.py"
    script.write_text(textwrap.dedent(text))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    return subprocess.Popen([sys.executable, str(script), str(folder)], text=True, env=environment, **options)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

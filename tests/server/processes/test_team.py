"""Processes that die, hang, lie and are left alone. No test waits for time to pass."""

import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import process_toys
import pytest

from foreframe_engines import BundleError, EngineLost, ModelFault
from foreframe_engines.selftest import random_rows
from foreframe_server.opening import given
from foreframe_server.processes.team import EngineTeam
from foreframe_server.settings import EngineSettings


def wait_dead(pidfd, seconds):
    return bool(select.select([pidfd], [], [], seconds)[0])


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_call_that_its_process_dies_of_is_lost_and_the_next_one_runs(make_team, make_row, restarted):
    engine = make_team(process_toys.open_rollout).opened(0).rollout
    expected = engine.step([make_row(engine)])[0].tobytes()
    with pytest.raises(EngineLost) as lost:
        engine.step([make_row(engine, process_toys.DIE)])
    assert lost.value.has_run
    assert engine.step([make_row(engine)])[0].tobytes() == expected
    assert restarted.reasons == ["crash"]


def test_rows_from_before_a_death_give_the_same_bytes_after_it(make_team, make_row, restarted):
    engine = make_team(process_toys.open_rollout).opened(0).rollout
    rows = random_rows(engine, 6)
    expected = [state.tobytes() for state in engine.step(rows)]
    for count in (1, 2):
        with pytest.raises(EngineLost):
            engine.step([make_row(engine, process_toys.DIE)])
        assert [state.tobytes() for state in engine.step(rows)] == expected
        assert len(restarted.reasons) == count


def test_a_process_killed_while_it_is_idle_costs_no_call(make_team, make_row, restarted):
    team = make_team(process_toys.open_rollout)
    engine = team.opened(0).rollout
    row = make_row(engine)
    for count in range(1, 4):
        os.kill(team.pids[0], signal.SIGKILL)
        assert len(engine.step([row])) == 1
        restarted.wait(count)
    assert team.is_ready
    assert set(restarted.reasons) == {"crash"}


def test_capacity_is_back_within_three_seconds_of_a_kill(make_team, restarted, wait_live):
    team = make_team(process_toys.open_rollout, size=2, limits=None)
    killed_s = time.monotonic()
    os.kill(team.pids[1], signal.SIGKILL)
    restarted.wait()
    wait_live(team, 2)
    assert time.monotonic() - killed_s < 3


def test_an_engine_borrows_the_process_of_another_device_while_its_own_is_down(make_team, make_row, limits):
    team = make_team(process_toys.open_rollout, size=2, limits=replace(limits, delay_s=60, max_delay_s=60))
    engines = [team.opened(index).rollout for index in range(2)]
    with pytest.raises(EngineLost):
        engines[0].step([make_row(engines[0], process_toys.DIE)])
    assert len(engines[0].step([make_row(engines[0])])) == 1
    assert team.num_live == 1
    assert team.is_ready


def test_a_call_that_never_ends_is_lost_and_its_process_replaced(make_team, make_row, restarted):
    engine = make_team(process_toys.open_rollout).opened(0).rollout
    for _ in range(2):
        engine.step([make_row(engine)])
    with pytest.raises(EngineLost, match="hang"):
        engine.step([make_row(engine, process_toys.HANG)])
    assert len(engine.step([make_row(engine)])) == 1
    assert restarted.reasons == ["hang"]


def test_a_stopped_process_is_replaced_though_nobody_calls_it(make_team, restarted, wait_live):
    team = make_team(process_toys.open_rollout)
    stopped = team.pids[0]
    os.kill(stopped, signal.SIGSTOP)
    restarted.wait()
    wait_live(team, 1)
    assert restarted.reasons == ["hang"]
    assert team.pids[0] != stopped
    assert is_gone(stopped)


def test_a_process_that_answers_garbage_is_replaced(make_team, make_row, restarted):
    engine = make_team(process_toys.open_rollout).opened(0).rollout
    with pytest.raises(EngineLost, match="corrupt"):
        engine.step([make_row(engine, process_toys.GARBAGE)])
    assert len(engine.step([make_row(engine)])) == 1
    assert restarted.reasons == ["corrupt"]


def test_two_threads_share_one_process_without_mixing_answers(make_team, make_row):
    team = make_team(process_toys.open_toys)
    opened = team.opened(0)
    rows = random_rows(opened.rollout, 2)
    alone = [opened.rollout.step([row])[0].tobytes() for row in rows]
    seen = [set(), set()]

    def step(place):
        for _ in range(100):
            seen[place].add(opened.rollout.step([rows[place]])[0].tobytes())

    threads = [threading.Thread(target=step, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [{alone[0]}, {alone[1]}]


def test_what_opening_raises_is_raised_by_the_start_at_once(make_team, restarted):
    team = make_team(process_toys.open_nothing, size=2, is_started=False)
    with pytest.raises(BundleError, match=r"manifest\.json: missing"):
        team.start()
    assert not team.is_ready
    assert team.pids == (None, None)


def test_a_model_that_kills_its_process_ends_the_restarts(make_team, restarted, tmp_path):
    starts = tmp_path / "starts"
    team = make_team(process_toys.die_at_once, bundle=starts, is_started=False)
    with pytest.raises(EngineLost, match="over and over"):
        team.start()
    assert len(starts.read_text().splitlines()) == 3
    assert not team.is_ready


def test_a_crash_loop_in_work_makes_the_team_unready_and_calls_end_at_once(make_team, make_row, wait_live, context):
    team = make_team(process_toys.open_rollout)
    engine = team.opened(0).rollout
    row = make_row(engine, process_toys.DIE)
    for _ in range(3):
        wait_live(team, 1)
        with pytest.raises(EngineLost):
            engine.step([row])
    with pytest.raises(EngineLost, match="none") as lost:
        engine.encode(context)
    assert not lost.value.has_run
    assert not team.is_ready


def test_a_model_in_a_crash_loop_leaves_the_others_alone(make_team, make_row, wait_live, context):
    broken, sound = (make_team(process_toys.open_rollout) for _ in range(2))
    engine, other = (team.opened(0).rollout for team in (broken, sound))
    expected, row = other.encode(context).tobytes(), make_row(engine, process_toys.DIE)
    for _ in range(3):
        wait_live(broken, 1)
        with pytest.raises(EngineLost):
            engine.step([row])
        assert other.encode(context).tobytes() == expected
    with pytest.raises(EngineLost, match="none"):
        engine.encode(context)
    assert (broken.is_ready, sound.is_ready) == (False, True)
    assert other.encode(context).tobytes() == expected


def test_another_model_than_at_the_start_is_not_served(make_team, make_row, restarted, tmp_path):
    name = tmp_path / "name"
    name.write_text("one")
    team = make_team(process_toys.open_named, bundle=name)
    engine = team.opened(0).rollout
    row = make_row(engine)
    name.write_text("other")
    os.kill(team.pids[0], signal.SIGKILL)
    with pytest.raises(EngineLost):
        engine.step([row])
    assert "another one" in str(team._keepers[0].failure)
    assert not team.is_ready


def test_a_call_that_needs_too_much_memory_fails_alone(make_team, make_row, restarted, limits):
    team = make_team(process_toys.open_rollout, limits=replace(limits, memory_bytes=2 * 2**30))
    engine, pids = team.opened(0).rollout, team.pids
    with pytest.raises(ModelFault, match="MemoryError"):
        engine.step([make_row(engine, process_toys.GREED)])
    for _ in range(100):
        engine.step([make_row(engine)])
    assert team.pids == pids
    assert restarted.reasons == []


def test_closing_leaves_no_process_and_no_descriptor(make_team, make_row, context):
    before = open_descriptors()
    for _ in range(2):
        team = make_team(process_toys.open_toys, size=2)
        pids = team.pids
        team.close()
        team.close()
        assert all(map(is_gone, pids))
        assert not team.is_ready
    assert open_descriptors() == before
    with pytest.raises(EngineLost):
        team.opened(0).rollout.encode(context)


def test_closing_waits_for_no_process_before_all_are_killed(make_team):
    team = make_team(process_toys.open_rollout, size=3)
    pidfds = [os.pidfd_open(pid) for pid in team.pids]
    closing = threading.Thread(target=team.close)
    try:
        with team._keepers[0]._calling:  # its burial waits for this
            closing.start()
            assert all(wait_dead(pidfd, 20) for pidfd in pidfds)
            assert closing.is_alive()
        closing.join()
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def test_restarts_leave_no_descriptor(make_team, make_row):
    engine = make_team(process_toys.open_rollout).opened(0).rollout
    row = make_row(engine)
    engine.step([row])
    before = open_descriptors()
    for _ in range(2):
        with pytest.raises(EngineLost):
            engine.step([make_row(engine, process_toys.DIE)])
        engine.step([row])
    assert open_descriptors() == before


def test_the_team_closes_with_the_last_of_its_engines(make_team):
    team = make_team(process_toys.open_toys, size=2)
    one, two = team.opened(0), team.opened(1)
    for engine in (one.rollout, one.likelihood, two.rollout, one.rollout):
        engine.close()
        assert team.is_ready
    two.likelihood.close()
    assert not team.is_ready
    assert team.pids == (None, None)


def test_a_call_that_runs_while_the_team_closes_is_lost(make_team, make_row):
    team = make_team(process_toys.open_rollout)
    engine = team.opened(0).rollout
    row, ends = make_row(engine, process_toys.HANG), []

    def step():
        try:
            engine.step([row])
        except EngineLost as lost:
            ends.append(lost)

    thread = threading.Thread(target=step)
    thread.start()
    team.close()
    thread.join()
    assert len(ends) == 1


def test_signals_for_the_server_do_not_end_its_processes(make_team, make_row, restarted):
    team = make_team(process_toys.open_rollout)
    engine = team.opened(0).rollout
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        os.kill(team.pids[0], signal_number)
    assert len(engine.step([make_row(engine)])) == 1
    assert restarted.reasons == []


def test_a_process_gives_way_to_its_parent(make_team):
    team = make_team(process_toys.open_rollout)
    assert os.getpriority(os.PRIO_PROCESS, team.pids[0]) >= 10


def test_an_opener_without_a_name_is_refused():
    with pytest.raises(ValueError, match="name"):
        EngineTeam(given(None), EngineSettings(), size=1, on_restart=print)


def test_answers_under_kills_at_random_are_right_or_lost(make_team, make_row, restarted, wait_live):
    team, rng = make_team(process_toys.open_rollout, size=2), random.Random(0)
    engines = [team.opened(index).rollout for index in range(2)]
    rows = random_rows(engines[0], 4)
    expected = [engines[0].step([row])[0].tobytes() for row in rows]
    kills = set(rng.sample(range(400), 6))
    num_right = 0
    for number in range(400):
        if number in kills:
            wait_live(team, 2)
            os.kill(rng.choice(team.pids), signal.SIGKILL)
        place = rng.randrange(4)
        try:
            assert rng.choice(engines).step([rows[place]])[0].tobytes() == expected[place]
            num_right += 1
        except EngineLost:
            continue
    assert num_right >= 400 - len(kills)
    restarted.wait(len(kills))


_UNWRITABLE = """
import os, resource, sys
sys.path.append({folder!r})
import process_toys
from foreframe_engines.selftest import random_rows
from foreframe_server.processes.team import EngineTeam
from foreframe_server.settings import EngineSettings
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
team = EngineTeam(process_toys.open_rollout, EngineSettings(), size=1, on_restart=print)
team.start()
here, there = process_toys.open_rollout(None).rollout, team.opened(0).rollout
same = [engine.step(random_rows(engine, 4))[3].tobytes() for engine in (here, there)]
os._exit(42 if same[0] == same[1] else 1)
"""


def test_calls_need_no_room_on_any_disk():
    script = _UNWRITABLE.format(folder=str(Path(__file__).parent))
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 42


_PARENT = """
import sys, threading
sys.path.append({folder!r})
import process_toys
from foreframe_server.processes.team import EngineTeam
from foreframe_server.settings import EngineSettings
team = EngineTeam(process_toys.open_rollout, EngineSettings(), size=2, on_restart=print)
team.start()
print(*team.pids, flush=True)
threading.Event().wait()
"""


@pytest.fixture
def parent():
    """Another server's process, whose children's pids it prints."""
    script = _PARENT.format(folder=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("are_stopped", [False, True], ids=["running", "stopped"])
def test_processes_end_with_their_parent(parent, are_stopped):
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    pidfds = [os.pidfd_open(pid) for pid in pids]
    for pid in pids if are_stopped else ():
        os.kill(pid, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    try:
        assert all(wait_dead(pidfd, 1.0) for pidfd in pidfds)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def test_the_watch_for_the_dead_tells_the_living(make_team):
    (pid,) = make_team(process_toys.open_rollout).pids
    pidfd = os.pidfd_open(pid)
    assert not wait_dead(pidfd, 0)
    assert not is_gone(pid)
    os.close(pidfd)

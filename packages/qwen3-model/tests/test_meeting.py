"""How the launchers of several nodes agree on a start, see its end and start again; here as threads."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from qwen3_model.errors import FormatError, Qwen3Error
from qwen3_model.ranks.msrun import meeting, node_files
from qwen3_model.ranks.msrun.meeting import EndedError, Meeting, Rules, Start
from qwen3_model.ranks.msrun.node_files import DONE, FAILED, STOPPED, End, NodeFiles, Round

LONGEST_S = 20


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, value in (("BEAT_S", 0.02), ("LOOK_S", 0.04), ("MEET_S", 0.03)):
        monkeypatch.setattr(meeting, name, value)
    monkeypatch.setattr(node_files, "LOST_S", 0.6)


class Node:
    """A launcher in a thread: `work` says what its workers do in each start."""

    def __init__(self, folder, number, work, *, num_nodes=2, rules=None, decide=None):
        self.log, self.starts, self.outcome = [], [], None
        rules = rules or Rules(first_s=10, again_s=10, max_restarts=3)
        decide = decide or (lambda nodes, restarts: Start(members=tuple(nodes), port=1, arguments=("a",)))

        def run():
            try:
                with Meeting(folder, number, num_nodes, f"host{number}", rules) as seat:
                    self.outcome = self.take_part(seat, work, decide)
            except BaseException as error:
                self.outcome = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def take_part(self, seat, work, decide):
        while True:
            agreed = seat.agree(decide, self.log.append)
            if isinstance(agreed, End):
                return agreed
            self.starts.append(agreed)
            try:
                end = seat.finish(work(seat, agreed))
            except Qwen3Error as error:
                end = seat.fail(str(error))
            if end.state != FAILED or end.is_final:
                return end

    def end(self):
        self.thread.join(LONGEST_S)
        assert not self.thread.is_alive()
        return self.outcome


def runs(seat, start):
    """Work until another node fails, which it never does by itself."""
    deadline_s = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline_s:
        seat.check()
        time.sleep(0.01)
    return ""


def ends(seat, start):
    return ""


def fails_once(seat, start):
    if start.restarts == 0:
        raise Qwen3Error("a rank was killed")
    return ""


def runs_then_ends(seat, start):
    return runs(seat, start) if start.restarts == 0 else ""


def test_nodes_wait_for_each_other_and_start_with_the_same_words(tmp_path):
    first = Node(tmp_path, 1, ends)
    time.sleep(0.3)
    assert not first.starts
    nodes = [Node(tmp_path, 0, ends), first]
    assert [node.end() for node in nodes] == [End(state=DONE)] * 2
    assert nodes[0].starts == nodes[1].starts
    (start,) = first.starts
    assert (start.members, start.address, start.arguments) == ((0, 1), "host0", ("a",))


@pytest.mark.parametrize("number", [0, 1])
def test_a_failure_on_one_node_ends_the_start_on_all_and_all_start_again(tmp_path, number):
    work = [fails_once, runs_then_ends][:: 1 if number == 0 else -1]
    nodes = [Node(tmp_path, node, work[node]) for node in (0, 1)]
    assert [node.end() for node in nodes] == [End(state=DONE)] * 2
    assert [[start.restarts for start in node.starts] for node in nodes] == [[0, 1], [0, 1]]


def test_after_the_last_restart_all_end_with_the_same_reason(tmp_path):
    def fails(seat, start):
        raise Qwen3Error(f"failure {start.restarts}")

    rules = Rules(first_s=10, again_s=10, max_restarts=2)
    nodes = [Node(tmp_path, 0, runs, rules=rules), Node(tmp_path, 1, fails, rules=rules)]
    outcomes = [node.end() for node in nodes]
    assert outcomes[1] == End(state=FAILED, reason="failure 2", is_final=True)
    # Whoever comes late to the last start finds that it has failed.
    assert (outcomes[0].reason if isinstance(outcomes[0], End) else str(outcomes[0])) == "failure 2"
    assert len(nodes[1].starts) == 3


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_node_that_is_lost_is_seen_by_all_and_left_out(tmp_path, lost):
    gone = threading.Event()

    def work(seat, start):
        if start.restarts == 0 and seat.node == lost:
            seat._over.set()  # no more beats, and not a word: its power is gone
            gone.wait(LONGEST_S)
            raise SystemExit
        return runs(seat, start) if start.restarts == 0 else ""

    rules = Rules(first_s=10, again_s=0.5, max_restarts=1)
    nodes = [Node(tmp_path, node, work, num_nodes=3, rules=rules) for node in range(3)]
    left = [node for number, node in enumerate(nodes) if number != lost]
    assert [node.end() for node in left] == [End(state=DONE)] * 2
    members = tuple(number for number in range(3) if number != lost)
    for node in left:
        assert [start.members for start in node.starts] == [(0, 1, 2), members]
    assert left[0].starts[1].address == f"host{members[0]}"
    gone.set()


def test_a_node_that_comes_back_takes_part_in_the_next_start(tmp_path):
    again = threading.Event()

    def work(seat, start):
        if start.restarts == 0 and seat.node == 1:
            seat._over.set()
            raise KeyboardInterrupt
        if start.restarts == 1:
            again.wait(LONGEST_S)
            raise Qwen3Error("another failure")
        return runs(seat, start) if start.restarts == 0 else ""

    # Gone without a word.
    quiet = Rules(first_s=10, again_s=0.3, max_restarts=5)
    Meeting.__exit__, leave = (lambda self, kind, error, trace: self._over.set()), Meeting.__exit__
    try:
        nodes = [Node(tmp_path, node, work, rules=quiet) for node in (0, 1)]
        nodes[1].thread.join(LONGEST_S)
    finally:
        Meeting.__exit__ = leave
    deadline_s = time.monotonic() + LONGEST_S
    while len(nodes[0].starts) < 2:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    back = Node(tmp_path, 1, work, rules=quiet)
    time.sleep(0.5)
    again.set()
    assert [nodes[0].end(), back.end()] == [End(state=DONE)] * 2
    assert [start.members for start in nodes[0].starts] == [(0, 1), (0,), (0, 1)]
    assert [start.restarts for start in back.starts] == [2]


def test_a_job_that_was_asked_to_end_ends_on_all_nodes(tmp_path):
    nodes = [Node(tmp_path, node, lambda seat, start: "SIGTERM") for node in (0, 1)]
    assert [node.end() for node in nodes] == [End(state=STOPPED, reason="SIGTERM")] * 2


def test_what_cannot_start_is_said_on_all_nodes(tmp_path):
    def refuse(nodes, restarts):
        raise Qwen3Error("the data are not there")

    nodes = [Node(tmp_path, node, ends, decide=refuse) for node in (0, 1)]
    assert [str(node.end()) for node in nodes] == ["the data are not there"] * 2
    # The next job is not held up by what is left of this one.
    nodes = [Node(tmp_path, node, ends) for node in (1, 0)]
    assert [node.end() for node in nodes] == [End(state=DONE)] * 2


def test_a_node_that_never_comes_is_named(tmp_path):
    rules = Rules(first_s=0.5, again_s=10)
    error = Node(tmp_path, 0, ends, num_nodes=3, rules=rules).end()
    assert "node 1, 2 did not come within" in str(error)


def test_what_another_process_of_the_node_was_to_do_is_not_done(tmp_path):
    """A file system may show a folder as it was: an old start must not be taken for the new one."""
    files = NodeFiles(tmp_path)
    files.decide(Round(number=1, members=(0, 1), starts=("x", "y"), address="h", port=1, restarts=0))
    seats = [Node(tmp_path, node, ends) for node in (0, 1)]
    assert [node.end() for node in seats] == [End(state=DONE)] * 2
    assert [start.number for start in seats[0].starts] == [2]


def test_a_look_that_is_refused_does_not_count(tmp_path, monkeypatch):
    files = NodeFiles(tmp_path)
    files.put_node(1, node_files.NodeState())
    watch = node_files.NodeWatch(files, 1, every_s=0.1)
    watch.look()
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(OSError("stale")))
    for _ in range(20):
        watch.look()
    assert not watch.is_lost
    monkeypatch.undo()
    monkeypatch.setattr(node_files, "LOST_S", 0.6)
    for _ in range(20):
        watch.look()
    assert watch.is_lost


@pytest.mark.parametrize(
    ("contents", "fault"),
    [
        ("[]", "holds no JSON object: [] is not a section"),
        ("null", "holds no JSON object: None"),
        ('{"beat": "1"}', "has a wrong beat: '1' is not a whole number"),
        ('{"round": true}', "has a wrong round: True"),
        ('{"state": {"name": "done"}}', "has a wrong state"),
        ('{"speed": 1}', "has the unknown key 'speed'"),
    ],
)
def test_a_node_of_another_version_is_named_once_it_is_seen_to_write(tmp_path, contents, fault):
    files = NodeFiles(tmp_path)
    watch = node_files.NodeWatch(files, 1, every_s=1)
    path = tmp_path / "node_1.json"
    path.write_text(contents)
    for _ in range(2):  # an earlier job has left it
        watch.look()
    assert watch.state is None
    os.utime(path, ns=(1, 1))
    with pytest.raises(FormatError) as error:
        watch.look()
    assert str(error.value).startswith(f"{path} {fault}")


@pytest.mark.parametrize(
    ("contents", "fault"),
    [
        ({"members": None}, "has a wrong members: None is not a list"),
        ({"members": ["0"]}, "has a wrong members: '0' is not a whole number"),
        ({"starts": ["x", "y"]}, "has 2 starts of 1 members"),
        ({"is_finished": "no"}, "has a wrong is_finished"),
        ({"devices": 8}, "has the unknown key 'devices'"),
        ({}, "lacks port"),
    ],
)
def test_a_start_that_another_version_has_decided_ends_the_job(tmp_path, contents, fault):
    whole = {"number": 1, "members": [0], "starts": ["x"], "address": "h", "restarts": 0}
    port = {"port": 1} if contents else {}
    seat = Meeting(tmp_path, 1, 2, "host1", Rules(first_s=1, again_s=1))
    (tmp_path / "round_1.json").write_text(json.dumps(whole | port | contents))
    with pytest.raises(FormatError) as error:
        seat.agree(lambda nodes, restarts: None, print)
    assert str(error.value).startswith(f"{tmp_path / 'round_1.json'} {fault}")


@pytest.mark.parametrize("contents", ["", "[1]", '{"state": 1}', '{"why": ""}'])
def test_an_unreadable_end_of_an_earlier_job_is_named(tmp_path, contents):
    (tmp_path / "round_1.json").touch()
    (tmp_path / "end_1.json").write_text(contents)
    with pytest.raises(FormatError, match=r"end_1\.json .*; remove .* and start all nodes"):
        Meeting(tmp_path, 0, 2, "host0", Rules(first_s=1, again_s=1))


def test_only_two_small_files_are_read_in_a_look(tmp_path, monkeypatch):
    read, seats = [], []

    def work(seat, start):
        if seat.node == 0:
            look, files = seat._files._read, []
            monkeypatch.setattr(seat._files, "_read", lambda *given: files.append(given[0]) or look(*given))
            for _ in range(3):
                time.sleep(meeting.LOOK_S)
                seat.check()
            read.extend(files)
        seats.append(seat)
        return ""

    nodes = [Node(tmp_path, node, work, num_nodes=5) for node in range(5)]
    assert [node.end() for node in nodes] == [End(state=DONE)] * 5
    assert read == ["end_1.json", "node_1.json"] * 3


def test_an_end_that_another_node_gave_is_raised(tmp_path):
    reasons = []

    def work(seat, start):
        if seat.node == 1:
            time.sleep(0.5)
            raise Qwen3Error("rank 1 was killed")
        try:
            return runs(seat, start)
        except EndedError as error:
            reasons.append(str(error))
            raise

    rules = Rules(first_s=10, again_s=10)
    nodes = [Node(tmp_path, node, work, rules=rules) for node in (0, 1)]
    assert [node.end().reason for node in nodes] == ["rank 1 was killed"] * 2
    assert reasons == ["rank 1 was killed"]

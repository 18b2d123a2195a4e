# SPDX-License-Identifier: MIT
"""One program at a time in a folder; locks of dead programs are taken over."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from solo.errors import BusyError
from solo.files import lock as lock_module
from solo.files.lock import FolderLock, Holder

HOLD = """
import sys, time
from solo.files.lock import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another program that holds the folder."""
    program = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert program.stdout.readline() == "held\n"
    yield program
    program.kill()
    program.wait()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT", 0.05)
    monkeypatch.setattr(lock_module, "PATIENCE", 0.5)


def test_the_second_is_told_who_holds_the_folder(tmp_path, other):
    who = rf"process {other.pid} on {socket.gethostname()}, since \d{{4}}-\d\d-\d\d \d\d:\d\d"
    with pytest.raises(BusyError, match=who):
        FolderLock(tmp_path).acquire()
    assert not FolderLock(tmp_path).free()


def test_a_killed_holder_is_taken_over(tmp_path, other):
    other.kill()
    other.wait()
    began = time.monotonic()
    with FolderLock(tmp_path):
        pass
    assert time.monotonic() - began < 5


def test_nothing_is_left_in_the_record(tmp_path):
    with FolderLock(tmp_path) as lock:
        assert lock.holder().pid == os.getpid()
    assert lock.holder() is None
    assert FolderLock(tmp_path).free()
    lock.release()  # twice changes nothing


def record_of_another_machine(folder):
    path = folder / lock_module.RECORD
    holder = Holder(os.getpid(), "elsewhere", "2026-01-01 00:00:00")
    path.write_text(json.dumps(holder._asdict()))
    return path


def test_a_dead_holder_on_another_machine_is_taken_over(tmp_path, quick, capsys):
    record_of_another_machine(tmp_path)
    with FolderLock(tmp_path) as lock:
        assert lock.holder().host == socket.gethostname()
    assert "elsewhere" in capsys.readouterr().out


def test_a_live_holder_on_another_machine_is_respected(tmp_path, quick):
    path = record_of_another_machine(tmp_path)
    done = threading.Event()

    def beat():
        while not done.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(BusyError, match="on elsewhere, since 2026-01-01"):
            FolderLock(tmp_path).acquire()
    finally:
        done.set()
        thread.join()
    with FolderLock(tmp_path):  # the system's lock was given back
        pass


def test_the_holder_gives_signs_of_life(tmp_path, quick):
    with FolderLock(tmp_path):
        path = tmp_path / lock_module.RECORD
        os.utime(path, (1, 1))
        end = time.monotonic() + 5
        while path.stat().st_mtime == 1 and time.monotonic() < end:
            time.sleep(0.02)
        assert path.stat().st_mtime > 1


def test_a_damaged_record_holds_nobody_up(tmp_path):
    (tmp_path / lock_module.RECORD).write_text("{")
    with FolderLock(tmp_path):
        pass

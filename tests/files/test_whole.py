# SPDX-License-Identifier: MIT
"""Files are whole or not there, whatever goes wrong while they are written."""

import errno
import json
import os
import subprocess
import sys

import pytest

from solo.errors import OutputError
from solo.files import whole
from solo.files.whole import whole_file, write_json, write_text


def test_the_file_appears_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with whole_file(path) as partial:
        partial.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_text(tmp_path / "file.txt", "old")
    with pytest.raises(KeyError), whole_file(path) as partial:
        {}[partial.write_text("new")]
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_json_has_a_form_for_everything(tmp_path):
    path = write_json(tmp_path / "a.json", {"path": tmp_path, "n": 1})
    assert json.loads(path.read_text()) == {"path": str(tmp_path), "n": 1}


def test_a_full_disk_is_named(tmp_path):
    with (
        pytest.raises(OutputError, match=r"a\.txt' cannot be written: No space left"),
        whole_file(tmp_path / "a.txt"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_of_that_name_is_named(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OutputError, match=r"a\.txt' cannot be written: Is a directory"):
        write_text(tmp_path / "a.txt", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written: "):
        write_text(tmp_path / "file" / "a.txt", "text")


SMALL_DISK = """
import resource, signal, sys, torch
from safetensors.torch import save_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from solo.errors import OutputError
from solo.files.whole import whole_file
big = {"a": torch.zeros(1 << 18)}
for write in (torch.save, save_file):
    try:
        with whole_file(sys.argv[1]) as partial:
            write(big, partial)
    except OutputError as error:
        print(error)
"""


def test_disks_that_refuse_torch_and_safetensors_are_recognised(tmp_path):
    path = tmp_path / "big"
    command = [sys.executable, "-c", SMALL_DISK, str(path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told == [
        f"'{path}' cannot be written: the disk is full or has failed",
        f"'{path}' cannot be written: File too large (os error 27)",
    ]
    assert not list(tmp_path.iterdir())


def test_other_errors_are_no_refusals():
    assert whole.refusal(RuntimeError("shapes differ")) is None


def test_what_a_killed_program_has_left_is_removed(tmp_path):
    (tmp_path / "a.ckpt.123.partial").write_text("")
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "c.ckpt").write_text("")
    whole.remove_partial(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["c.ckpt"]


def test_a_second_try_removes_what_the_killed_first_one_has_left(tmp_path):
    path, other = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    program = (
        "import os, sys\nfrom solo.files.whole import whole_file\n"
        "with whole_file(sys.argv[1]) as partial:\n    partial.write_text('half')\n    os._exit(9)"
    )
    for name in (path, other):
        subprocess.run([sys.executable, "-c", program, str(name)])
    half = [p.name for p in tmp_path.iterdir()]
    assert len(half) == 2
    alive = tmp_path / half[0].replace(half[0].split("-")[1], f"{os.getppid()}.partial")
    alive.write_text("of a program at work")
    elsewhere = tmp_path / "a.ckpt.00000000-1.partial"
    elsewhere.write_text("of another machine")
    for name in (path, other):
        with whole_file(name) as partial:
            partial.write_text("whole")
    kept = {path.name, other.name, alive.name, elsewhere.name}
    assert {p.name for p in tmp_path.iterdir()} == kept

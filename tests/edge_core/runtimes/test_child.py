"""Child processes: what they answer, and what their death looks like from outside."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edge_core.errors import ConvertError, MeasureError, StorageError
from edge_core.runtimes import sample_store
from edge_core.runtimes.child import Child


@pytest.fixture
def digit_feeds(tmp_path):
    rng = np.random.default_rng(0)
    samples = [{"input": rng.normal(size=(1, 1, 28, 28)).astype(np.float32)} for _ in range(3)]
    sample_store.write(tmp_path / "feeds", samples)
    return tmp_path / "feeds"


def open_model(child, path):
    return child.ask("open", path=str(path), runtime="onnxruntime", threads=1, options={})


def test_it_opens_runs_times_and_weighs_a_real_model(digits, digit_feeds, tmp_path):
    with Child() as child:
        reply = open_model(child, digits)
        assert reply["load_ms"] > 0
        assert reply["inputs"][0]["shape"] == [1, 1, 28, 28]
        assert child.ask("run", feeds=str(digit_feeds), out=str(tmp_path / "out")) == {"n": 3}
        assert sample_store.read(tmp_path / "out").stacked["logits"].shape == (3, 1, 10)
        assert len(child.ask("time", feeds=str(digit_feeds), runs=5)["ms"]) == 5
        assert child.ask("memory")["peak_mb"] > reply["base_mb"]


def test_a_refusal_is_an_error_and_the_child_lives_on(digits, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with Child() as child:
        with pytest.raises(MeasureError, match=r"cannot load bad\.onnx"):
            open_model(child, tmp_path / "bad.onnx")
        assert open_model(child, digits)["version"]


def test_an_option_that_the_adapter_does_not_list_is_refused(digits):
    options = {"session.load_model_format": "ORT"}
    with Child() as child, pytest.raises(MeasureError, match="has no option"):
        child.ask("open", path=str(digits), runtime="onnxruntime", threads=1, options=options)


def test_a_crash_names_the_signal(digits, digit_feeds):
    with Child() as child:
        open_model(child, digits)
        threading.Timer(0.3, os.kill, (child.pid, signal.SIGSEGV)).start()
        with pytest.raises(MeasureError, match="crashed with SIGSEGV during 'time'"):
            child.ask("time", feeds=str(digit_feeds), runs=10_000_000)
        with pytest.raises(MeasureError, match="crashed with SIGSEGV before"):
            child.ask("memory")


def test_a_child_that_hangs_is_ended(digits, digit_feeds):
    with Child() as child:
        open_model(child, digits)
        with pytest.raises(MeasureError, match="did not finish 'time' in time"):
            child.ask("time", timeout_s=0.2, feeds=str(digit_feeds), runs=10_000_000)


def test_a_child_that_was_ended_refuses_further_commands(digits, digit_feeds):
    with Child() as child:
        open_model(child, digits)
        child.close()
        with pytest.raises(MeasureError, match="was ended before 'memory'"):
            child.ask("memory")


def test_a_full_disk_is_a_storage_error_and_not_the_candidates_fault(
    digits, digit_feeds, small_disk
):
    (small_disk / "filler").write_bytes(bytes(3 * 2**20 - 4096))
    with Child() as child:
        open_model(child, digits)
        with pytest.raises(StorageError, match="no space left"):
            child.ask("run", feeds=str(digit_feeds), out=str(small_disk / "out"))
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


@pytest.mark.parametrize("busy", ["", "c.ask('time', feeds=sys.argv[2], runs=10_000_000)"])
def test_no_child_outlives_its_parent(digits, digit_feeds, busy):
    """kill -9 of the parent: the child sees the end of its input and leaves, busy or not."""
    code = (
        "from edge_core.runtimes.child import Child\nimport sys, time\n"
        "c = Child(); print(c.pid, flush=True)\n"
        "c.ask('open', path=sys.argv[1], runtime='onnxruntime', threads=1, options={})\n"
        f"print('open', flush=True)\n{busy}\ntime.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(digits), str(digit_feeds)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    pid = int(parent.stdout.readline())
    assert parent.stdout.readline() == "open\n"
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and is_alive(pid):
        time.sleep(0.05)
    assert not is_alive(pid)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


# --- any module with a main() is a child ----------------------------------------------------------

ODD_CHILD = """
import os, sys, time
from edge_core.errors import ConvertError, StorageError
from edge_core.runtimes import command_loop

def chatter():
    print("hello"); os.system("echo hello; read line")
    return {"stdin": sys.stdin.readline()}

def refuse():
    raise ConvertError("no such op", hint="another model")

def fill():
    raise StorageError("no space left")

def exhaust():
    raise MemoryError

def fail():
    return {}["missing"]

def fork_and_leave(note):
    if pid := os.fork():
        open(note, "w").write(str(pid))
        os._exit(3)
    time.sleep(300)

def main():
    names = (chatter, refuse, fill, exhaust, fail, fork_and_leave)
    command_loop.serve({command.__name__: command for command in names})
"""


@pytest.fixture
def odd_child(tmp_path):
    (tmp_path / "odd_child.py").write_text(ODD_CHILD)
    with (
        (tmp_path / "stderr").open("w+b") as stderr,
        Child(
            "odd_child", name="the converter", failure=ConvertError, site=tmp_path, stderr=stderr
        ) as child,
    ):
        yield child


def test_what_a_library_prints_and_reads_does_not_break_the_protocol(odd_child, tmp_path):
    assert odd_child.ask("chatter") == {"stdin": ""}
    assert odd_child.ask("chatter") == {"stdin": ""}
    assert (tmp_path / "stderr").read_text().count("hello") == 4


@pytest.mark.parametrize(
    ("command", "kind", "words"),
    [
        ("refuse", ConvertError, "no such op\n  hint: another model"),
        ("fill", StorageError, "no space left"),
        ("exhaust", ConvertError, "out of memory"),
    ],
)
def test_errors_have_the_kind_that_the_parent_chose_or_are_of_the_disk(
    odd_child, command, kind, words
):
    for _ in range(2):  # and the child lives on
        with pytest.raises(kind) as e:
            odd_child.ask(command)
        assert str(e.value) == words


def test_a_bug_is_told_with_the_last_line_of_its_traceback(odd_child):
    words = "the converter ended with exit status 1 during 'fail': KeyError: 'missing'"
    with pytest.raises(ConvertError, match=words):
        odd_child.ask("fail")


def test_a_fork_that_lives_on_does_not_block_and_ends_with_the_child(odd_child, tmp_path):
    start = time.monotonic()
    with pytest.raises(ConvertError, match="ended with exit status 3 during 'fork_and_leave'"):
        odd_child.ask("fork_and_leave", note=str(tmp_path / "pid"))
    assert time.monotonic() - start < 20
    fork = int((tmp_path / "pid").read_text())
    assert is_alive(fork)
    odd_child.close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and is_alive(fork):
        time.sleep(0.05)
    assert not is_alive(fork)

"""No network and no rights: the agent lives with neither, and with nothing that its unit denies."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.config import Config, Http, Install
from edge_core.machine.detect import detect_facts
from edge_core.package import run
from edge_core.runtimes.registry import installed_runtimes
from tests.agent.process import PYTHON, Service, numbers, open_folders, settings, until
from tests.cases import ROOT

ROWS = [[1.0, -2.0, 3.0, 0.5]]
NOBODY = 65534
UNIT = ROOT / "agent" / "system" / "edge-agent.service"
# What systemd does for the unit, as far as a process can do it to itself: calls outside its
# SystemCallFilter get EPERM, and no memory becomes executable that was writable.
# argv: allowed calls, then the command.
CONFINE = """
import ctypes, os, sys
libc, seccomp = ctypes.CDLL(None), ctypes.CDLL("libseccomp.so.2")
seccomp.seccomp_init.restype = ctypes.c_void_p
PR_SET_NO_NEW_PRIVS, PR_SET_MDWE, EPERM, ALLOW = 38, 65, 0x00050001, 0x7fff0000
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(PR_SET_MDWE, 1, 0, 0, 0) == 0, "this kernel is older than 6.3"
context = ctypes.c_void_p(seccomp.seccomp_init(EPERM))
for name in sys.argv[1].split():
    number = seccomp.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        assert seccomp.seccomp_rule_add(context, ALLOW, number, 0) == 0, name
assert seccomp.seccomp_load(context) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture
def config(tmp_path: Path, config: Config) -> Config:
    return msgspec.structs.replace(config, http=Http(socket=str(tmp_path / "http.sock")))


# --- no network ---------------------------------------------------------------------------------


@pytest.fixture
def island() -> Iterator[tuple[str, ...]]:
    """Words before a command: it runs with no interface but a loopback that is down."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "600"])
    mine = Path("/proc/self/ns/net").readlink()
    until(lambda: Path(f"/proc/{holder.pid}/ns/net").readlink() != mine)
    yield ("nsenter", "--net", "-t", str(holder.pid), "--")
    holder.kill()
    holder.wait()


def test_it_installs_serves_and_answers_without_any_network(
    island: tuple[str, ...], config: Config, make_package, tmp_path: Path
):
    reach = "import socket; socket.create_connection(('127.0.0.1', 8000), 1)"
    alone = subprocess.run([*island, PYTHON, "-c", reach], capture_output=True, text=True)
    assert "Network is unreachable" in alone.stderr
    source = numbers(tmp_path, x=ROWS)
    config.root.mkdir(mode=0o700)

    def command(*words: object) -> str:
        done = subprocess.run(
            [*island, PYTHON, "-m", "agent", *map(str, words), "--config", settings(config)],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    command("install", make_package())
    in_process = json.loads(command("infer", "dense", source, "--json"))
    with Service(config, *island) as service:
        served = json.loads(service.command("infer", "dense", source, "--json"))
        assert served["top"] == [
            {**entry, "score": pytest.approx(entry["score"], rel=1e-6)}
            for entry in in_process["top"]
        ]
        assert '"served": "sha256:' in service.command(
            "install", make_package(version="2", seed=2), "--json"
        )
        assert service.end() == 0


# --- no rights ----------------------------------------------------------------------------------


def list_allowed_calls() -> str:
    """The system calls that the unit's SystemCallFilter leaves, by name."""
    asked = ["systemd-analyze", "--no-pager", "syscall-filter"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    sets = {
        match[1]: match[2].split()
        for match in re.finditer(r"^(@[\w-]+)\n((?: .*\n|\n)*)", re.sub(r" *#.*", "", listed), re.M)
    }

    def members(name: str) -> set[str]:
        names = sets[name] if name.startswith("@") else []
        return {name}.union(*map(members, names)) if names else {name}

    calls: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.M):
        named = set().union(*map(members, line.removeprefix("~").split()))
        calls = calls - named if line.startswith("~") else calls | named
    # systemd always allows what starts the command.
    return " ".join(sorted(calls | {"execve"}))


def test_the_filter_is_what_it_should_be():
    calls = list_allowed_calls().split()
    assert {"read", "mmap", "futex", "flock", "clone3"} <= set(calls)
    assert not {"mount", "ptrace", "setuid", "reboot", "bpf", "sched_setaffinity"} & set(calls)
    assert len(calls) > 200


@pytest.fixture
def commons() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's are for their owner."""
    with tempfile.TemporaryDirectory(prefix="edge-agent-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_it_serves_as_nobody_with_no_rights_and_no_call_that_the_unit_forbids(
    commons: Path, make_package, monkeypatch: pytest.MonkeyPatch
):
    folder, home = commons / "nobody", commons / "home"
    config = Config(
        data_dir=str(folder / "data"),
        http=Http(socket=str(folder / "http.sock")),
        install=Install(tune_s=0.2),
    )
    for path in (folder, home, config.root):
        path.mkdir(mode=0o700)
    package, source = folder / "p.edgepkg", numbers(folder, x=ROWS)
    package.write_bytes(make_package().read_bytes())
    for path in (folder, home, config.root, package, source):
        os.chown(path, NOBODY, NOBODY)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    script = " && ".join([*open_folders(Path(sys.base_prefix), ROOT), 'cd "$PWD"', 'exec "$@"'])
    prefix = (
        "unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh",
        "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
        "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs",
        sys.executable, "-I", "-c", CONFINE, list_allowed_calls(),
    )  # fmt: skip
    with Service(config, *prefix) as service:
        status = Path(f"/proc/{service.process.pid}/status").read_text()
        facts = dict(re.findall(r"^(\w+):\t(.*)$", status, re.M))
        assert set(facts["Uid"].split()) == {str(NOBODY)}
        assert {facts[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
        service.command("install", package)
        answer = json.loads(service.command("infer", "dense", source, "--json"))
        expected = [
            entry.label
            for entry in run.run_package(package, source, detect_facts(installed_runtimes())).top
        ]
        assert [entry["label"] for entry in answer["top"]] == expected
        assert service.end(signal.SIGTERM) == 0
    assert list(home.iterdir()) == []  # no runtime keeps anything of its own


def test_the_confinement_is_real(tmp_path: Path):
    """Else the test above shows nothing."""
    script = (
        "import mmap, os\n"
        "for act in (lambda: os.sched_setaffinity(0, {0}), lambda: mmap.mmap(-1, 4096, prot=7)):\n"
        "    try: act()\n"
        "    except PermissionError: print('denied')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", CONFINE, list_allowed_calls(), sys.executable, "-c", script],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout == "denied\ndenied\n", done.stderr

"""The unit and the install script, for real: as root on a copy-on-write view of this machine."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = ROOT / "agent" / "system"
UNIT = SYSTEM / "edge-agent.service"
MOST_EXPOSED = 1.5  # of 10.0; what is left: files may be seen, sockets opened on this machine


def call(*command: object, ok: int | None = 0) -> str:
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, cwd="/"
    )
    said = f"{done.stdout}{done.stderr}"
    assert ok is None or done.returncode == ok, f"{command}: exit {done.returncode}\n{said}"
    return said


def here(tmp_path: Path) -> Path:
    """The unit with the interpreter of this machine in place of the installed one."""
    text = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", UNIT.read_text(), flags=re.M)
    (tmp_path / UNIT.name).write_text(text)
    return tmp_path / UNIT.name


# --- the unit -----------------------------------------------------------------------------------


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path):
    assert call("systemd-analyze", "verify", "--man=no", here(tmp_path)) == ""
    broken = here(tmp_path)
    broken.write_text(broken.read_text().replace("Restart=on-failure", "Restart=perhaps"))
    assert "restart specifier" in call("systemd-analyze", "verify", "--man=no", broken, ok=None)


def test_what_the_unit_can_reach_is_little(tmp_path: Path):
    said = call("systemd-analyze", "security", "--offline=true", here(tmp_path))
    exposure = float(re.search(r"exposure level for \S+: ([\d.]+)", said)[1])
    assert exposure <= MOST_EXPOSED, said
    assert "✗ UMask=" not in said


def test_the_unit_restarts_watches_and_bounds_the_agent():
    settings = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.M))
    assert settings["Type"] == "notify"
    assert settings["Restart"] == "on-failure"
    assert settings["StartLimitIntervalSec"] == "0"
    for key in ("WatchdogSec", "MemoryMax", "TasksMax", "LimitNOFILE", "TimeoutStopSec"):
        assert re.match(r"[1-9]", settings[key]), key


# --- the script ---------------------------------------------------------------------------------


def test_shellcheck_finds_nothing_in_the_script():
    assert call("shellcheck", "--shell=sh", SYSTEM / "install.sh") == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--form", "x.whl"], "unknown option --form"),
        (["--from"], "--from needs a value"),
        (["--from", "/gone.whl"], "no wheel at /gone.whl"),
        (["--python", "/bin/false"], "is not Python 3.10 or newer"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_made(arguments: list[str], words: str):
    assert words in call("sh", SYSTEM / "install.sh", *arguments, ok=1)
    assert not Path("/opt/edge-agent").exists()


class Device:
    """This machine with private, empty layers over the folders that an installation writes to."""

    LAYERS = ("/etc", "/opt", "/var", "/usr/local")

    def __init__(self, folder: Path) -> None:
        mounts = [f"mount -t tmpfs tmpfs {folder}"]
        for i, over in enumerate(self.LAYERS):
            mounts.append(f"mkdir {folder}/{i} {folder}/{i}w")
            layers = f"lowerdir={over},upperdir={folder}/{i},workdir={folder}/{i}w"
            mounts.append(f"mount -t overlay overlay -o {layers} {over}")
        script = " && ".join([*mounts, "echo ready", "exec sleep 600"])
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"

    def run(self, *command: object, ok: int | None = 0) -> str:
        return call("nsenter", "--mount", "-t", self._holder.pid, "--", *command, ok=ok)

    def path(self, path: str) -> Path:
        """A file of the device, seen from outside."""
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    device = Device(tmp_path_factory.mktemp("layers"))
    yield device
    device.close()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("wheel")
    no = shutil.ignore_patterns(
        ".*", "build", "dist", "out", "shared", "*.egg-info", "__pycache__", "examples", "tests"
    )
    shutil.copytree(ROOT, work / "source", ignore=no)
    call(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--wheel-dir", work, work / "source",
    )  # fmt: skip
    (built,) = work.glob("*.whl")
    return built


def test_the_script_installs_updates_and_removes(device: Device, wheel: Path):
    script = SYSTEM / "install.sh"
    install = ("sh", script, "--from", wheel, "--extras", "image", "--python", sys.executable)

    # A first installation: user, folders, settings, unit, command.
    said = device.run(*install)
    assert said.endswith("done\n")
    user = device.run("getent", "passwd", "edge-agent").split(":")
    assert user[6].strip().endswith("nologin")
    data = device.path("/var/lib/edge-agent")
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert str(data.stat().st_uid) == user[2]
    assert device.path("/etc/edge-agent/config.toml").is_file()
    installed = device.path("/etc/systemd/system/edge-agent.service")
    assert installed.read_text() == UNIT.read_text()
    as_user = ("setpriv", f"--reuid={user[2]}", f"--regid={user[3]}", "--clear-groups")
    version = device.run(*as_user, "/usr/local/bin/edge-agent", "--version")
    assert version.strip() in wheel.name

    # The command that the unit starts is there, and its user may run it.
    start = re.search(r"^ExecStart=(.*)$", installed.read_text(), re.M)[1].split()
    assert "no settings at /gone" in device.run(
        *as_user, *start[: start.index("--config")], "--config", "/gone", ok=1
    )

    # Again: what the owner changed stays.
    settings = device.path("/etc/edge-agent/config.toml")
    settings.write_text(settings.read_text().replace("port = 8000", "port = 8001"))
    (data / "kept").write_text("")
    device.run(*install)
    assert "port = 8001" in settings.read_text()

    # Away: settings and data stay until --purge.
    device.run("sh", script, "--uninstall")
    for gone in (
        "/opt/edge-agent",
        "/usr/local/bin/edge-agent",
        "/etc/systemd/system/edge-agent.service",
    ):
        assert not os.path.lexists(device.path(gone)), gone
    assert settings.exists()
    assert (data / "kept").exists()
    device.run("sh", script, "--uninstall", "--purge")
    assert not settings.exists()
    assert not data.exists()
    assert device.run("getent", "passwd", "edge-agent", ok=2) == ""
    assert not Path("/etc/edge-agent").exists(), "the machine itself was changed"

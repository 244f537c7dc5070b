"""The unit and the install script, for real: as root on a copy-on-write view of this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.process import clips, numbers, open_folders, until
from tests.cases import ROOT
from tests.wheel_source import copy_source

SYSTEM = ROOT / "agent" / "system"
UNIT = SYSTEM / "edge-agent.service"
PAGE = ROOT / "docs" / "agent.md"
MOST_EXPOSED = 1.5  # of 10.0; what is left: files may be seen, sockets opened on this machine


def call(*command: object, ok: int | None = 0) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, cwd="/"
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
    """This machine with private layers over the folders that an installation writes to."""

    LAYERS = ("/etc", "/opt", "/srv", "/usr/local", "/var")

    def __init__(self, folder: Path) -> None:
        lines = [*open_folders(Path(sys.base_prefix), ROOT), f"mount -t tmpfs tmpfs {folder}"]
        for i, over in enumerate(self.LAYERS):
            layers = f"lowerdir={over},upperdir={folder}/{i},workdir={folder}/{i}w"
            lines.append(f"mkdir {folder}/{i} {folder}/{i}w")
            lines.append(f"mount -t overlay overlay -o {layers} {over}")
        script = " && ".join([*lines, "echo ready", "exec sleep 600"])
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        self.words = ("nsenter", "--mount", "-t", str(self._holder.pid), "--", "env", "-C", "/srv")

    def run(self, *command: object, ok: int | None = 0) -> str:
        return call(*self.words, *command, ok=ok)

    def as_user(self) -> tuple[str, ...]:
        """Words before a command of the service's user."""
        path = "/usr/local/bin:/usr/bin:/bin"
        return (
            *self.words, f"PATH={path}", "COLUMNS=200", "setpriv", "--reuid=edge-agent",
            "--regid=edge-agent", "--clear-groups", "--no-new-privs",
        )  # fmt: skip

    def path(self, path: str) -> Path:
        """A file of the device, seen from outside."""
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("wheel")
    copy_source(work / "source")
    call(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--wheel-dir", work, work / "source",
    )  # fmt: skip
    (built,) = work.glob("*.whl")
    return built


def console(title: str) -> list[str]:
    """The commands of a part of the page, or of all of it."""
    text = PAGE.read_text("utf-8")
    part = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.M | re.S)[1] if title else text
    blocks = re.findall(r"^```console\n(.*?)^```", part, re.M | re.S)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory, wheel: Path, make_package) -> Iterator[Device]:
    """A device on which the page's first command was run."""
    device = Device(tmp_path_factory.mktemp("layers"))
    try:
        for source in (wheel, SYSTEM / "install.sh"):
            shutil.copy(source, device.path("/srv"))
        for version, seed in (("1.0.0", 1), ("1.1.0", 2)):
            package = make_package(name="door", version=version, seed=seed)
            shutil.copy(package, device.path(f"/srv/door-{version}.edgepkg"))
        numbers(device.path("/srv"), x=[[1.0, -2.0, 3.0, 0.5]])
        clips(device.path("/srv/samples"))
        (first, *_) = console("Install")
        python = f"PATH={sys.base_prefix}/bin:{os.environ['PATH']}"
        said = device.run("env", python, "sh", "-c", first.removeprefix("sudo "))
        assert said.endswith("done\n")
        yield device
    finally:
        device.close()


def test_the_script_makes_user_folders_settings_unit_and_command(device: Device, wheel: Path):
    user = device.run("getent", "passwd", "edge-agent").split(":")
    assert user[6].strip().endswith("nologin")
    data, settings = device.path("/var/lib/edge-agent"), device.path("/etc/edge-agent/config.toml")
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert str(data.stat().st_uid) == user[2]
    assert 'data_dir = "/var/lib/edge-agent"' in settings.read_text()
    unit = device.path("/etc/systemd/system/edge-agent.service").read_text()
    assert unit == UNIT.read_text()
    version = call(*device.as_user(), "edge-agent", "--version")
    assert version.strip() in wheel.name
    # The command that the unit starts is there, and its user may run it.
    start = re.search(r"^ExecStart=(.*)$", unit, re.M)[1].split()
    without = start[: start.index("--config")]
    assert "no settings at /gone" in call(*device.as_user(), *without, "--config", "/gone", ok=1)


def test_every_command_of_the_page_works(device: Device):
    settings = device.path("/etc/edge-agent/config.toml")
    settings.write_text(settings.read_text().replace("port = 8000", "port = 0"))  # any free one
    done = {*console("Install")[:1], *console("Remove")}  # in the fixture, in the next test
    elsewhere = [line for line in console("") if re.match(r"(sudo )?(systemctl|journalctl) ", line)]
    assert len(elsewhere) == 3  # systemd does not run here
    agent: subprocess.Popen[bytes] | None = None
    try:
        for command in console(""):
            if command in elsewhere or command in done:
                continue
            assert command.startswith("edge-agent "), command
            if command.endswith(" &"):
                agent = subprocess.Popen([*device.as_user(), *command.removesuffix(" &").split()])
                until(device.path("/var/lib/edge-agent/agent.json").exists)
            else:
                call(*device.as_user(), *command.split())
        status = json.loads(call(*device.as_user(), "edge-agent", "status", "--json"))
        (model,) = status["status"]["models"]
        assert (model["name"], model["version"]) == ("door", "1.1.0")
    finally:
        if agent:
            agent.terminate()
            assert agent.wait(30) == 0


def test_an_update_keeps_settings_and_data_and_a_removal_what_it_says(device: Device, wheel: Path):
    settings, data = device.path("/etc/edge-agent/config.toml"), device.path("/var/lib/edge-agent")
    settings.write_text(settings.read_text().replace("max_mb = 64.0", "max_mb = 32.0"))
    (data / "kept").write_text("")
    script = ("sh", "/srv/install.sh")
    device.run(*script, "--from", f"/srv/{wheel.name}", "--python", sys.executable)
    assert "max_mb = 32.0" in settings.read_text()
    remove, purge = (command.removeprefix("sudo ").split() for command in console("Remove"))
    device.run(*remove)
    for gone in (
        "/opt/edge-agent",
        "/usr/local/bin/edge-agent",
        "/etc/systemd/system/edge-agent.service",
    ):
        assert not os.path.lexists(device.path(gone)), gone
    assert settings.exists()
    assert (data / "kept").exists()
    device.run(*purge)
    assert not settings.exists()
    assert not data.exists()
    assert device.run("getent", "passwd", "edge-agent", ok=2) == ""
    assert not Path("/etc/edge-agent").exists(), "the machine itself was changed"

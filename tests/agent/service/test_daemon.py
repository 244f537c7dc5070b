"""The agent as a process: one a data directory, told about, reloaded, watched, drained."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.config import Config, Crash, Http
from agent.packages.install import install
from agent.packages.slots import Slots
from agent.service import client, instance_lock, watchdog
from agent.serving.backend import Activity
from edge_core.errors import EdgeError, InputError, Unavailable
from tests.agent.process import FOR_EVER, Service, edge_agent, numbers, settings, turner, until
from tests.cases import ROOT


@pytest.fixture
def config(tmp_path: Path, config: Config) -> Config:
    """On a unix socket: no two tests can meet."""
    return msgspec.structs.replace(config, http=Http(socket=str(tmp_path / "http.sock")))


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(30)
        yield sock


def receive_message(sock: socket.socket) -> list[str]:
    return sock.recv(4096).decode().splitlines()


# --- start and stop -----------------------------------------------------------------------------


def test_it_tells_the_manager_when_it_is_ready_reloads_and_stops(
    installed_config: Config, manager: socket.socket
):
    with Service(installed_config, NOTIFY_SOCKET=manager.getsockname()) as service:
        assert receive_message(manager) == ["READY=1", "STATUS=serving dense 1.0.0"]
        assert client.is_ready(service.here)
        assert service.here.pid == service.process.pid  # `run` became the agent
        service.process.send_signal(signal.SIGHUP)
        assert receive_message(manager)[0] == "RELOADING=1"
        assert receive_message(manager)[0] == "READY=1"
        assert service.end() == 0
        assert receive_message(manager)[0] == "STOPPING=1"
    assert instance_lock.find_instance(installed_config.root) is None
    assert not (installed_config.root / instance_lock.FILE).exists()
    lines = service.log.read_text().splitlines()
    assert lines
    assert [
        line for line in lines if not re.fullmatch(r"[A-Z]+ [\w.]+: event=\w+( \w+=.*)*", line)
    ] == []


def test_there_is_only_one_on_a_data_directory(installed_config: Config):
    with Service(installed_config) as first:
        second = Service(installed_config, ready=False)
        assert second.process.wait(30) == 1
        said = f"another agent serves {installed_config.root}: process {first.process.pid}"
        assert said in first.log.read_text()
        assert client.is_ready(first.here)


def test_after_a_kill_nothing_is_in_the_way(installed_config: Config):
    with Service(installed_config) as first:
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
    assert (installed_config.root / instance_lock.FILE).exists()  # and yet:
    assert instance_lock.find_instance(installed_config.root) is None
    with Service(installed_config) as second:
        assert client.is_ready(second.here)


def test_a_stop_answers_what_was_begun(config: Config, tmp_path: Path):
    install(config, turner(tmp_path))
    turns = numbers(tmp_path, n=[300_000])
    answers: list[object] = []

    def ask(service: Service) -> None:
        answers.append(as_told(service, turns))

    with Service(config) as service:
        threads = [threading.Thread(target=ask, args=(service,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: client.status(service.here)["models"][0]["requests"] == 4)
        assert service.end() == 0
        for thread in threads:
            thread.join()
    assert answers == [300_000] * 4


def as_told(service: Service, source: Path) -> object:
    """The answer of turner, or the error."""
    slots = Slots(service.config.root)
    current = slots.active("turner").current
    assert current
    manifest = slots.model(current)
    try:
        return client.infer(service.here, manifest, source).outputs["turned"][0]
    except EdgeError as error:
        return error


def test_what_is_wrong_at_the_start_is_told(config: Config, tmp_path: Path):
    service = Service(config, ready=False)  # no data directory yet
    assert service.process.wait(30) == 1
    assert "error: data_dir" in service.log.read_text()
    assert "hint: edge-agent init" in service.log.read_text()
    done = subprocess.run(
        [sys.executable, "-m", "agent.service.daemon", "--fast"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 1
    assert "not understood: --fast" in done.stderr
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Not a directory"), instance_lock.hold(tmp_path / "file"):
        pass


def test_events_are_json_where_they_are_asked_for(installed_config: Config):
    path, log = settings(installed_config), installed_config.root.parent / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "agent", "run", "--json", "--config", str(path)],
            stdout=output, stderr=output, cwd=ROOT,
        )  # fmt: skip
    until(lambda: "event=ready" in log.read_text())
    process.terminate()
    assert process.wait(30) == 0
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert events[-1]["message"] == "event=stopped"
    assert {"time", "level", "logger", "message"} == set(events[0])


def test_a_read_only_disk_does_not_keep_it_from_serving(
    installed_config: Config, tmp_path: Path, config: Config
):
    folder = installed_config.root
    mount = ["mount", "--bind", folder, folder]
    subprocess.run(mount, check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        with Service(installed_config, ready=False) as service:
            address = f"unix:{config.http.socket}"
            here = instance_lock.Instance(pid=service.process.pid, address=address, since=0.0)
            until(lambda: client.is_live(here) and client.is_ready(here))
            assert "event=not_announced" in service.log.read_text()
            assert service.end() == 0
    finally:
        subprocess.run(["umount", folder], check=True)


# --- what another process installs --------------------------------------------------------------


def test_an_installation_elsewhere_is_served_within_a_second(
    installed_config: Config, make_package
):
    with Service(installed_config) as service:
        new = install(installed_config, make_package(version="2", seed=2)).slot.digest
        switched = time.monotonic()
        until(lambda: service.digest("dense") == new)
        assert time.monotonic() - switched < 1.5  # a busy machine gets half a second more


def test_a_model_that_cannot_be_loaded_is_told_by_the_command(
    installed_config: Config, make_package
):
    package = make_package(version="2", seed=2)
    with Service(installed_config) as service:
        old = service.digest("dense")
        new = install(installed_config, package).slot
        until(lambda: service.digest("dense") == new.digest)
        edge_agent("rollback", "dense", config=service.path)
        assert service.digest("dense") == old
        # Bit rot in the installed file: the old model goes on.
        model = Slots(installed_config.root).folder(new) / "model.onnx"
        model.chmod(0o600)
        model.write_bytes(model.read_bytes()[:-1])
        said = edge_agent("rollback", "dense", config=service.path, ok=1).stderr
        assert "damaged" in said
        assert service.digest("dense") == old


def test_a_damaged_file_of_one_model_leaves_the_others_serving(
    installed_config: Config, make_package, tmp_path: Path
):
    install(installed_config, make_package(name="other"))
    active = installed_config.root / "models" / "other" / "active.json"
    with Service(installed_config) as service:
        active.write_text("{")
        until(lambda: "event=load_failed model=other" in service.log.read_text())
        status = client.status(service.here)
        assert {model["name"]: model["state"] for model in status["models"]}["dense"] == "ready"
        assert service.end() == 0
    with Service(installed_config) as service:  # and from the start
        states = {model["name"]: model["state"] for model in client.status(service.here)["models"]}
        assert states == {"dense": "ready", "other": "failed"}


# --- the watchdog -------------------------------------------------------------------------------


def activity(inferences: int, *, idle: bool = False, alive: bool = True) -> dict[str, Activity]:
    return {"m": Activity(alive=alive, idle=idle, inferences=inferences)}


def test_only_a_model_that_stands_still_while_it_is_busy_hangs():
    progress, why = watchdog.step({}, activity(5), 0.0, hang_s=10)
    assert why == ""
    for now, later in (
        (9, activity(5)),
        (18, activity(6)),
        (27, activity(6)),
        (28, activity(6, idle=True)),
    ):
        progress, why = watchdog.step(progress, later, now, hang_s=10)
        assert why == ""
    progress, why = watchdog.step(progress, activity(6), 30.0, hang_s=10)
    assert why == ""  # it was idle a moment ago
    progress, why = watchdog.step(progress, activity(6), 41.0, hang_s=10)
    assert why == "no inference of 'm' has finished for 13 s"
    progress, why = watchdog.step(progress, {}, 42.0, hang_s=10)
    assert (progress, why) == ({}, "")  # it was unloaded


def test_a_thread_that_ended_is_never_well():
    assert watchdog.step({}, activity(0, idle=True, alive=False), 0.0, 10)[1] == (
        "a thread of 'm' has ended"
    )


def test_a_server_that_does_not_answer_is_not_alive(installed_config: Config):
    with Service(installed_config) as service:
        here = service.here
        assert client.is_live(here)
        service.process.send_signal(signal.SIGSTOP)
        tasks = list(Path(f"/proc/{here.pid}/task").iterdir())
        until(lambda: all((task / "stat").read_text().split()[2] == "T" for task in tasks))
        try:
            assert not client.is_live(here, 0.3)
            with pytest.raises(Unavailable, match="does not answer at unix:"):
                client._exchange(here, "GET", "/v2", timeout_s=0.3)
        finally:
            service.process.send_signal(signal.SIGCONT)
        assert client.is_live(here)


def test_a_hung_runtime_stops_the_pings_and_is_rolled_back(
    config: Config, manager: socket.socket, tmp_path: Path
):
    """As systemd would: no pings, SIGABRT, a new start; then the previous version serves."""
    config = msgspec.structs.replace(config, crash=Crash(max_crashes=1, hang_s=0.5))
    good = install(config, turner(tmp_path)).slot.digest
    hanging = install(config, turner(tmp_path, version="2.0", step=2)).slot.digest
    watched = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "600000"}
    with Service(config, **watched) as service:
        assert receive_message(manager)[0] == "READY=1"
        assert [receive_message(manager) for _ in range(3)] == [["WATCHDOG=1"]] * 3
        assert service.digest("turner") == hanging
        endless = numbers(tmp_path, n=[FOR_EVER])
        asking = threading.Thread(target=as_told, args=(service, endless))
        asking.start()
        until(lambda: receive_message(manager) != ["WATCHDOG=1"])
        assert receive_message(manager) == receive_message(manager)
        status = receive_message(manager)
        assert len(status) == 1
        assert status[0].startswith("STATUS=no inference of 'turner' has finished")
        assert service.end(signal.SIGABRT) == -signal.SIGABRT
        asking.join()
    with Service(config) as service:
        assert service.digest("turner") == good
        assert "event=auto_rollback model=turner" in service.log.read_text()


def test_being_ended_twice_in_an_inference_is_no_crash(config: Config, tmp_path: Path):
    """The second signal kills: what the process was doing then is nobody's fault."""
    config = msgspec.structs.replace(config, crash=Crash(max_crashes=1))
    digest = install(config, turner(tmp_path)).slot.digest
    endless = numbers(tmp_path, n=[FOR_EVER])
    with Service(config) as service:
        asking = threading.Thread(target=as_told, args=(service, endless))
        asking.start()
        until(lambda: client.status(service.here)["models"][0]["requests"])
        service.process.send_signal(signal.SIGTERM)
        until(lambda: "event=stopping" in service.log.read_text())
        assert service.end(signal.SIGTERM) == -signal.SIGTERM
        asking.join()
    with Service(config) as service:
        assert service.digest("turner") == digest
        assert "event=auto_rollback" not in service.log.read_text()


# --- files --------------------------------------------------------------------------------------


def test_nobody_else_can_read_what_it_keeps(config: Config, make_package, tmp_path: Path):
    config = msgspec.structs.replace(
        config, serve=msgspec.structs.replace(config.serve, cache=True)
    )
    install(config, make_package())
    with Service(config) as service:
        service.command("infer", "dense", numbers(tmp_path, x=[[1, 2, 3, 4]]))
        service.command("install", make_package(version="2", seed=2))
        until(lambda: list((config.root / "caches").glob("*.db")))
        paths = [config.root, *config.root.rglob("*"), Path(config.http.socket)]
        open_to_others = [path for path in paths if stat.S_IMODE(path.lstat().st_mode) & 0o077]
        assert len(paths) > 15
        assert open_to_others == []

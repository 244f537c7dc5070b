"""The doctor's findings on real data directories, sound and damaged."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from agent.config import Config, Http
from agent.packages.install import install
from agent.packages.slots import Slots
from agent.service import doctor
from tests.agent.process import Service, settings


@pytest.fixture
def config(tmp_path: Path, config: Config) -> Config:
    return msgspec.structs.replace(config, http=Http(socket=str(tmp_path / "http.sock")))


def read_checks(config: Config) -> dict[str, doctor.Check]:
    checks = doctor.check_device(settings(config))
    assert all(check.hint for check in checks if check.state == "fail")
    return {check.what: check for check in checks}


def states(config: Config) -> dict[str, str]:
    return {what: check.state for what, check in read_checks(config).items()}


def test_a_sound_device_has_no_failure(installed_config: Config):
    checks = read_checks(installed_config)
    assert {check.state for check in checks.values()} <= {"ok", "warn"}
    assert checks["model dense"].state == "ok"
    assert "files intact" in checks["model dense"].detail
    for what in ("python", "memory", "settings", "data", "clock", "runtime onnxruntime"):
        assert checks[what].state == "ok", checks[what]


def test_settings_that_are_missing_or_wrong_fail(tmp_path: Path):
    (last,) = [
        check for check in doctor.check_device(tmp_path / "none.toml") if check.state == "fail"
    ]
    assert (last.what, last.hint) == (
        "settings", f"edge-agent init --config {tmp_path / 'none.toml'}"
    )  # fmt: skip
    (tmp_path / "bad.toml").write_text("[http]\nprot = 1\n")
    (last,) = [
        check for check in doctor.check_device(tmp_path / "bad.toml") if check.state == "fail"
    ]
    assert "did you mean 'port'?" in last.hint


def test_a_data_directory_that_is_missing_or_open_to_others_fails(config: Config, make_package):
    assert read_checks(config)["data"].state == "fail"
    install(config, make_package())
    assert "privacy" not in states(config)
    config.root.joinpath("models").chmod(0o750)
    assert read_checks(config)["privacy"].detail == f"others may use {config.root / 'models'}"


def test_a_data_directory_of_another_user_is_told_with_the_way_to_act_as_them(
    installed_config: Config,
):
    os.chown(installed_config.root, 65534, 65534)
    try:
        assert read_checks(installed_config)["data"].hint == "sudo -u '#65534' ..."
    finally:
        os.chown(installed_config.root, 0, 0)


def test_one_flipped_bit_in_an_installed_file_is_found(installed_config: Config):
    slots = Slots(installed_config.root)
    current = slots.active("dense").current
    assert current
    model = slots.folder(current) / "model.onnx"
    raw = bytearray(model.read_bytes())
    raw[len(raw) // 2] ^= 1
    model.chmod(0o600)
    model.write_bytes(raw)
    check = read_checks(installed_config)["model dense"]
    assert check.state == "fail"
    assert "damaged" in check.detail


def test_a_model_that_was_disabled_fails(installed_config: Config):
    Slots(installed_config.root).disable("dense", "the agent died 3 times")
    check = read_checks(installed_config)["model dense"]
    assert (check.state, check.detail) == ("fail", "the agent died 3 times")


def test_a_device_without_models_is_told_what_to_do(config: Config):
    config.root.mkdir(mode=0o700)
    assert read_checks(config)["models"].hint == "edge-agent install PACKAGE"


def test_a_damaged_cache_is_found(installed_config: Config):
    good = installed_config.root / "caches" / "results.db"
    bad = installed_config.root / "caches" / "near" / "dense.db"
    for path in (good, bad):
        path.parent.mkdir(mode=0o700)
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE t (x)")
            db.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 100)
            db.commit()
        path.chmod(0o600)
    with bad.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    checks = read_checks(installed_config)
    assert checks["cache exact"].state == "ok"
    check = checks["cache near dense"]
    assert (check.state, check.hint) == ("warn", "edge-agent cache clear")


def test_the_running_agent_is_asked(installed_config: Config):
    assert read_checks(installed_config)["agent"].detail == "does not run"
    with Service(installed_config) as service:
        assert "answers at unix:" in read_checks(installed_config)["agent"].detail
        Slots(installed_config.root).disable("dense", "why not")
        service.process.send_signal(signal.SIGHUP)
        until_state(installed_config, "warn")
        assert service.end() == 0


def until_state(config: Config, state: str) -> None:
    end = time.monotonic() + 10
    while read_checks(config)["agent"].state != state:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_clock_before_the_last_installation_is_wrong():
    assert doctor.check_clock(2_000_000_000.0, 1_900_000_000.0).state == "ok"
    check = doctor.check_clock(0.0, 1_900_000_000.0)
    assert (check.state, check.hint) == ("warn", "set the clock")
    assert check.detail == "1970-01-01 00:00 UTC, yet a package is from 2030-03-17 17:46 UTC"


@pytest.mark.parametrize(
    ("facts", "state", "words"),
    [
        ({"LoadState": "not-found"}, "warn", "install.sh"),
        ({"LoadState": "loaded", "ActiveState": "failed"}, "fail", "journalctl"),
        ({"ActiveState": "active", "WatchdogUSec": "infinity"}, "warn", "WatchdogSec"),
        ({"ActiveState": "active", "UnitFileState": "disabled"}, "warn", "systemctl enable"),
        ({"ActiveState": "active"}, "ok", "active, watchdog 30s"),
    ],
)
def test_the_unit_is_judged_by_what_systemd_says(facts: dict[str, str], state: str, words: str):
    usual = {"LoadState": "loaded", "UnitFileState": "enabled", "WatchdogUSec": "30s"}
    check = doctor.check_unit({**usual, **facts})
    assert check.state == state
    assert words in f"{check.detail} {check.hint}"

"""The agent as a service: `python -m agent.service.daemon [--config FILE]`, or `edge-agent run`.

    settings -> instance lock -> Agent -> HTTP server -> READY -> wait -> drain -> end

While it waits: what another process installed or rolled back is served within a second, SIGHUP
reloads at once, and the watchdog is pinged as long as the server answers and every model makes
progress. SIGTERM and SIGINT end it after the requests in flight; a second one ends it at once.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType

import msgspec

from agent import config
from agent.config import Config
from agent.http.server import Server
from agent.packages.journal import Journal
from agent.packages.slots import Slots
from agent.service import client, instance_lock, watchdog
from agent.service.instance_lock import Instance
from agent.service.systemd import Notifier
from agent.serving import memory
from agent.serving.agent import JOURNAL, Agent
from edge_core.errors import EdgeError, InputError, StorageError

log = logging.getLogger("agent")
POLL_S = 0.5
PROBE_S = 5.0  # how long the server may take to answer the watchdog's question
FORMAT = "%(levelname)s %(name)s: %(message)s"  # the journal adds the time
Signals = queue.SimpleQueue[int]


class Shutdown:
    """What a signal to stop does at once, whatever the process is busy with."""

    def __init__(self) -> None:
        self.journal: Journal | None = None

    def start(self) -> None:
        """From here on no death of the process is attributed to a model."""
        if self.journal:
            self.journal.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal; returns the exit code."""
    os.umask(0o077)
    memory.few_arenas()
    notifier = Notifier(os.environ)
    os.environ.pop("NOTIFY_SOCKET", None)  # not for the children
    try:
        path, as_json = _parse_arguments(sys.argv[1:] if arguments is None else arguments)
        settings = config.load_config(config.find_config(path))
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines() if as_json else logging.Formatter(FORMAT))
        logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
        shutdown = Shutdown()
        with _signals(shutdown) as signals:
            serve(settings, notifier, signals, shutdown)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def serve(settings: Config, notifier: Notifier, signals: Signals, shutdown: Shutdown) -> None:
    """Be the agent of a data directory until a signal says otherwise; raises EdgeError."""
    start = time.monotonic()
    with instance_lock.hold(settings.root):
        slots = Slots(settings.root)
        with suppress(StorageError):  # a disk that refuses keeps the leftovers; models are served
            slots.sweep()
        stamp = slots.stamp()  # before loading: what is switched meanwhile is seen as a change
        journal, inside = Journal.open(settings.root / JOURNAL)
        shutdown.journal = journal
        with Agent(settings, (journal, inside)) as agent:
            server = Server(agent, settings.http) if settings.http.enabled else None
            with server or nullcontext():
                address = server.start() if server else ""
                here = instance_lock.write_instance(settings.root, address)
                log.info("event=ready address=%s seconds=%.2f", address, time.monotonic() - start)
                notifier.ready(_status_line(agent))
                reloader = Reloader(agent, slots, notifier, stamp)
                Supervisor(settings, agent, server, here, reloader, notifier).until_stopped(signals)
                notifier.stopping()
                reloader.stop()
                counts = agent.counters.read_total()
                log.info("event=stopping answers=%d errors=%d", counts.success, counts.fail)
    log.info("event=stopped")


class Reloader:
    """Lets the agent serve what was switched; loading may take long, so it has its own thread."""

    def __init__(
        self, agent: Agent, slots: Slots, notifier: Notifier, stamp: tuple[object, ...]
    ) -> None:
        self._agent, self._slots, self._notifier, self._stamp = agent, slots, notifier, stamp
        self._wake = threading.Event()
        self._asked = self._stopped = False
        self._trouble = ""
        self._thread = threading.Thread(target=self._poll, name="reload", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Is its thread running?"""
        return self._thread.is_alive()

    def ask(self) -> None:
        """Reload at once, changed or not."""
        self._asked = True
        self._wake.set()

    def stop(self) -> None:
        """End after the reload in progress."""
        self._stopped = True
        self._wake.set()
        self._thread.join()

    def _poll(self) -> None:
        while True:
            self._wake.wait(POLL_S)
            if self._stopped:
                return
            self._wake.clear()
            try:
                self._look()
                self._trouble = ""
            except (EdgeError, OSError) as error:  # a disk that fails: what is loaded is served
                if str(error) != self._trouble:
                    log.error("event=reload_failed why=%r", str(error))
                self._trouble = str(error)
            except Exception:  # the thread's root; such as no thread left to drain a model with
                log.exception("event=reload_failed")

    def _look(self) -> None:
        now = self._slots.stamp()
        if not self._asked and now == self._stamp:
            return
        self._asked = False
        self._notifier.reloading()
        try:
            for name in self._agent.reload():
                log.info("event=reloaded model=%s", name)
            self._stamp = now  # not before: what failed is tried again
            self._slots.sweep()
        finally:
            self._notifier.ready(_status_line(self._agent))


class Supervisor:
    """The main thread: signals, and the watchdog's ping."""

    def __init__(
        self,
        settings: Config,
        agent: Agent,
        server: Server | None,
        here: Instance,
        reloader: Reloader,
        notifier: Notifier,
    ) -> None:
        self._agent, self._server, self._here = agent, server, here
        self._reloader, self._notifier = reloader, notifier
        self._hang_s = settings.crash.hang_s
        self._seen: watchdog.Seen = {}

    def until_stopped(self, signals: Signals) -> None:
        """Return at SIGTERM or SIGINT."""
        every = self._notifier.watchdog_s / 3 or None
        while True:
            try:
                if signals.get(timeout=every) != signal.SIGHUP:
                    return
                self._reloader.ask()
            except queue.Empty:
                self._beat()

    def _beat(self) -> None:
        why = self._unwell()
        if why:
            log.error("event=unwell why=%r", why)
            self._notifier.status(why)
        else:
            self._notifier.alive()

    def _unwell(self) -> str:
        """Why the service manager should restart the agent; "" if all is well."""
        now = time.monotonic()
        self._seen, why = watchdog.step(self._seen, self._agent.activities(), now, self._hang_s)
        if why:
            return why
        if not self._reloader.alive:
            return "the thread that reloads has ended"
        if self._server and not client.is_live(self._here, PROBE_S):
            return "the HTTP server does not answer"
        return ""


@contextmanager
def _signals(shutdown: Shutdown) -> Iterator[Signals]:
    """SIGTERM, SIGINT and SIGHUP as a queue; the second one to stop kills."""
    signals: Signals = queue.SimpleQueue()

    def on_signal(number: int, frame: FrameType | None) -> None:
        signals.put(number)
        if number != signal.SIGHUP:
            shutdown.start()
            signal.signal(number, signal.SIG_DFL)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {n: signal.signal(n, on_signal) for n in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _status_line(agent: Agent) -> str:
    """One line for `systemctl status`."""
    try:
        models = agent.models()
    except EdgeError as error:
        return f"serving; {error.what}"
    failed = [model.name for model in models if model.state == "failed"]
    serving = (
        ", ".join(f"{model.name} {model.version}" for model in models if model.state == "ready")
        or "no model"
    )
    return f"serving {serving}" + (f"; failed: {', '.join(failed)}" if failed else "")


class JsonLines(logging.Formatter):
    """One JSON object an event."""

    def format(self, record: logging.LogRecord) -> str:
        """``time`` in seconds since 1970."""
        event = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(event).decode()


def _parse_arguments(arguments: Sequence[str]) -> tuple[Path | None, bool]:
    """The settings' path, and whether events are written as JSON."""
    match list(arguments):
        case [*rest, "--json"]:
            return _parse_arguments(rest)[0], True
        case []:
            return None, False
        case ["--config", path]:
            return Path(path), False
    raise InputError(
        f"not understood: {' '.join(arguments)}", hint="agent.service.daemon --config FILE [--json]"
    )


if __name__ == "__main__":
    sys.exit(main())

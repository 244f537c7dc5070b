"""Measuring: what each candidate answers, how fast, in how much memory.

    answers(...)   outputs on every sample, in a child, cached by content
    timings(...)   load time, peak memory and latency: one candidate at a time, interleaved
    measurement(...)   both, checked against the original's outputs and labelled (pure)

Candidates answer side by side up to the cores. Timing is exclusive: all candidates stay loaded in
processes of their own and take turns in short rounds, so that a busy moment of the machine falls
on all of them alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from converters import registry as converters
from converters.spec import Spec
from edge_core.errors import EdgeError, MeasureError
from edge_core.files import tree_bytes, write_atomic
from edge_core.profile import Profile
from edge_core.runtimes import registry as runtimes
from edge_core.runtimes.child import Child
from edge_core.runtimes.xnnpack import Delegation
from edge_core.tensors import TensorSpec
from edge_sdk.build import io_layout, predict, runtime_env
from edge_sdk.build.convert import Prepared
from edge_sdk.build.runtime_env import RuntimeEnv
from edge_sdk.build.stages import Artifact, Measurement, Model, Quantity
from edge_sdk.build.workspace import Workspace, code

Specs = tuple[TensorSpec, ...]
ROUNDS = 12
ROUND_MS = 60.0  # one candidate's turn
MIN_RUNS, MAX_RUNS = 3, 40  # inferences a turn
BASE_MB = 120.0  # a process with NumPy, a runtime and no model
RUN_TIMEOUT_S = 1800.0
GENERATION = 1


class Latency(msgspec.Struct, frozen=True):
    """Percentiles over ``runs`` inferences with ``threads`` threads."""

    threads: int
    p50: float  # ms
    p90: float
    p99: float
    runs: int


class Timing(msgspec.Struct, frozen=True):
    """What one candidate cost on this machine."""

    load_ms: float
    base_mb: float  # peak resident set with the runtime imported and no model
    peak_mb: float  # and with the model, after its first inferences
    latency: tuple[Latency, ...]


class Subject(msgspec.Struct, frozen=True):
    """One file on one runtime."""

    path: Path
    sha256: str
    options: dict[str, str]
    env: RuntimeEnv
    model: Specs  # the inputs that samples are made for
    file: Specs  # and those of this file
    outputs: Specs = ()  # of this file
    fixed: Path | None = None  # the same for one row, where the batch of ``path`` is dynamic
    is_optimised: bool = False  # as the converter's SPEC says

    @property
    def key(self) -> tuple[str, dict[str, str], str, str, str]:
        adapter = code(runtimes.get(self.env.name))
        return self.sha256, self.options, self.env.name, self.env.version, adapter


def make_subject(artifact: Artifact, env: RuntimeEnv, model: Model) -> Subject:
    """The artifact as something to run."""
    return Subject(
        artifact.path, artifact.sha256, artifact.options, env, model.inputs, artifact.inputs,
        artifact.outputs, artifact.fixed, converters.get(artifact.candidate).SPEC.is_optimised,
    )  # fmt: skip


def original(prepared: Prepared, model: Model) -> Subject:
    """The original file on the host's own runtime: what candidates are compared with."""
    path = prepared.original
    env = runtime_env.find_installed(prepared.format.runtimes[0])
    return Subject(path, prepared.original_sha256, {}, env, model.inputs, model.inputs)


def answers(workspace: Workspace, subject: Subject, feeds: Path, host: Profile) -> Path:
    """A folder with the outputs on every sample; raises MeasureError if it cannot run.

    One thread: sums in another order are other numbers, and these end up in packages.
    """
    folder = workspace.entry("outputs", subject.key, machine(host), feeds.name, GENERATION)
    if not folder.is_dir():
        feeds = io_layout.fit_samples(workspace, feeds, subject.model, subject.file)
        with workspace.measuring_child(subject.env.site) as child:
            _open(child, subject, threads=1)
            child.ask("run", timeout_s=RUN_TIMEOUT_S, feeds=str(feeds), out=str(folder))
    return folder


def timings(
    workspace: Workspace, subjects: Mapping[str, Subject], feeds: Path, host: Profile, cores: int
) -> dict[str, Timing | EdgeError]:
    """Time every subject by name, interleaved; from the cache if they were timed together."""
    together = sorted({repr(subject.key) for subject in subjects.values()})
    timed_on = (machine(host), cores, feeds.name, GENERATION)
    files = {
        name: workspace.entry("timings", subject.key, together, timed_on)
        for name, subject in subjects.items()
    }
    if all(file.is_file() for file in files.values()):
        return {
            name: msgspec.json.decode(file.read_bytes(), type=Timing)
            for name, file in files.items()
        }
    results = dict(_time_interleaved(workspace, subjects, feeds, cores))
    for name, result in results.items():
        if isinstance(result, Timing):
            write_atomic(files[name], msgspec.json.encode(result))
    return results


def delegation(workspace: Workspace, subject: Subject, host: Profile) -> Delegation | None:
    """What runs outside XNNPACK on that runtime version; None where a runtime has no delegates.

    Raises MeasureError if it cannot run.
    """
    if not hasattr(runtimes.get(subject.env.name), "delegation"):
        return None
    file = workspace.entry("delegation", subject.key, machine(host), GENERATION)
    if not file.is_file():
        with workspace.measuring_child(subject.env.site) as child:
            reply = child.ask(
                "delegation", path=str(subject.path), runtime=subject.env.name, threads=1
            )
        write_atomic(file, msgspec.json.encode(reply))
    return msgspec.json.decode(file.read_bytes(), type=Delegation)


def machine(host: Profile) -> tuple[str, str, tuple[str, ...]]:
    """A cache may be shared: another processor has other times, and other last bits."""
    return host.platform.arch, host.cpu.model, host.cpu.isa


def batches(subjects: Mapping[str, Subject], host: Profile) -> Iterator[dict[str, Subject]]:
    """Groups that fit into half of the machine's memory when all are loaded at once."""
    room = host.memory.available_mb / 2
    batch: dict[str, Subject] = {}
    used = 0.0
    for name, subject in subjects.items():
        need = BASE_MB + 4 * tree_bytes(subject.path) / 1e6  # unpacked weights and arena
        if batch and used + need > room:
            yield batch
            batch, used = {}, 0.0
        batch[name] = subject
        used += need
    if batch:
        yield batch


def thread_counts(cores: int) -> tuple[int, ...]:
    """1, 2, 4 ... and all cores."""
    powers = (2**i for i in range(cores.bit_length()))
    return tuple(sorted({cores, *(power for power in powers if power <= cores)}))


def _open(child: Child, subject: Subject, threads: int) -> dict[str, float]:
    reply = child.ask(
        "open",
        path=str(subject.path),
        runtime=subject.env.name,
        threads=threads,
        options=subject.options,
    )
    if reply["version"] != subject.env.version:  # or every label of a measured value would be wrong
        raise MeasureError(
            f"{subject.env.name} is {reply['version']} there, not {subject.env.version}"
        )
    return reply


def _time_interleaved(
    workspace: Workspace, subjects: Mapping[str, Subject], feeds: Path, cores: int
) -> Iterator[tuple[str, Timing | EdgeError]]:
    """Rounds of turns: 1 thread first, then every core."""
    with ExitStack() as stack:
        feeds_folders = {
            name: str(io_layout.fit_samples(workspace, feeds, subject.model, subject.file))
            for name, subject in subjects.items()
        }
        alive = {
            name: stack.enter_context(workspace.measuring_child(subject.env.site))
            for name, subject in subjects.items()
        }
        costs: dict[str, tuple[float, float, float]] = {}
        failed: dict[str, EdgeError] = {}
        taken: dict[str, list[Latency]] = {name: [] for name in subjects}

        @contextmanager
        def surviving(name: str) -> Iterator[None]:
            try:
                yield
            except MeasureError as error:
                failed[name] = error
                alive.pop(name, None)

        steps = thread_counts(cores)
        total, done = ROUNDS * len(steps), 0
        for threads in steps:
            runs: dict[str, int] = {}
            times: dict[str, list[float]] = {name: [] for name in alive}
            for name in tuple(alive):
                with surviving(name):
                    costs.setdefault(name, (0, 0, 0))
                    opened = _open(alive[name], subjects[name], threads)
                    first = alive[name].ask("time", feeds=feeds_folders[name], runs=MIN_RUNS)["ms"]
                    if threads == 1:
                        peak = alive[name].ask("memory")["peak_mb"]
                        costs[name] = opened["load_ms"], opened["base_mb"], peak
                    fit = int(ROUND_MS / max(min(first), 1e-3))
                    runs[name] = min(MAX_RUNS, max(MIN_RUNS, fit))
            for _ in range(ROUNDS):
                for name in tuple(alive):
                    with surviving(name):
                        turn = alive[name].ask("time", feeds=feeds_folders[name], runs=runs[name])
                        times[name] += turn["ms"]
                done += 1
                workspace.progress("time", f"{threads} thread(s)", done, total)
            for name in alive:
                taken[name].append(_percentiles(times[name], threads))
    for name in subjects:
        if name in failed:
            yield name, failed[name]
        else:
            load, base, peak = costs[name]
            yield name, Timing(load, base, peak, tuple(taken[name]))


def _percentiles(ms: Sequence[float], threads: int) -> Latency:
    cuts = statistics.quantiles(ms, n=100, method="inclusive")
    return Latency(threads, cuts[49], cuts[89], cuts[98], len(ms))


def measurement(
    artifact: Artifact,
    spec: Spec,
    accuracy: Mapping[str, Quantity],
    timing: Timing,
    float32: Timing | None,
    env: RuntimeEnv,
    host: Profile,
    device: Profile,
    delegation: Delegation | None,
) -> Measurement:
    """Put one candidate's numbers together: measured here, predicted for the device. Pure."""
    where = env.where
    integer = spec.scheme in ("static", "dynamic") or artifact.precision.startswith("int")
    comparable = not spec.arch_bound or host.platform.arch == device.platform.arch
    values = {
        "package_mb": Quantity("measured", artifact.bytes / 1e6, "MB", "the file"),
        **accuracy,
        **_host_values(timing, where),
    }
    for percentile in ("p50", "p90", "p99"):
        values[f"latency_{percentile}_ms"] = (
            predict.latency(
                host,
                device,
                candidate=values[f"host_{percentile}_ms"],
                float32=_one_thread(float32, percentile, where) if float32 else None,
                integer=integer,
                portable=runtimes.get(env.name).SPEC.portable,
            )
            if comparable
            else Quantity("unknown", None, "ms", "", note="laid out for another architecture")
        )
    loaded = Quantity("measured", timing.load_ms, "ms", where)
    values["load_ms"] = predict.latency(
        host, device, candidate=loaded, float32=loaded, integer=False
    )
    values["memory_peak_mb"] = predict.memory(host, device, values["host_peak_mb"])
    values["energy_mj"] = predict.energy(device, values["latency_p50_ms"])
    return Measurement(candidate=artifact.candidate, values=values, delegation=delegation)


def _host_values(timing: Timing, where: str) -> dict[str, Quantity]:
    values = {
        "host_load_ms": Quantity("measured", timing.load_ms, "ms", where),
        "host_peak_mb": Quantity(
            "measured",
            timing.peak_mb,
            "MB",
            where,
            note=f"{timing.base_mb:.0f} MB before the model",
        ),
    }
    for lat in timing.latency:
        suffix = "" if lat.threads == 1 else f"_{lat.threads}t"
        note = f"{lat.threads} thread(s), {lat.runs} runs, interleaved"
        for percentile in ("p50", "p90", "p99"):
            ms = getattr(lat, percentile)
            values[f"host_{percentile}_ms{suffix}"] = Quantity(
                "measured", ms, "ms", where, note=note
            )
    return values


def _one_thread(timing: Timing, percentile: str, where: str) -> Quantity:
    return Quantity("measured", getattr(timing.latency[0], percentile), "ms", where)

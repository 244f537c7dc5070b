"""kill -9 while a package is installed, switched to, rolled back and swept away.

    python -m benchmarks.agent_kills --rounds 300

Each round starts a real process that does one of these, kills it at a random moment, and looks at
what is left as the next start of the agent would: the served package must be the one from before
or the one that was meant to come, every byte of it in place, and its golden vectors must replay.
After one sweep nothing may be on the disk that is not named. Exit code 2 if anything is broken.
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from agent.config import Config, Install
from agent.packages.install import install
from agent.packages.slots import ACTIVE, Slot, Slots
from benchmarks import agent_packages
from edge_core import console
from edge_core.errors import EdgeError
from edge_core.package import format as package
from edge_core.package import golden
from edge_core.runtimes import registry as runtimes

ROOT = Path(__file__).resolve().parent.parent
WHAT = ("install", "switch", "rollback", "sweep")
# Where an installation is killed: after this line of progress, within so many seconds.
STAGES = {
    "go": 0.02, "verified": 0.03, "unpacked": 0.3, "self-test": 0.3, "1": 0.02, "dense": 0.01,
}  # fmt: skip
LOOP_S = 0.15  # the others repeat what they do until they are killed, at the latest after this
LEFT = {
    "half slots": ("slots/.", ".gone."),
    "scratch": (".work.",),
    "temporary files": (f".{ACTIVE}.",),
    "unnamed slots": ("slots/",),
}  # first match counts


@dataclass(frozen=True)
class Round:
    """What one kill left."""

    what: str
    stage: str  # the last line that was read before the kill
    serves: str  # "old" or "new"
    left: tuple[str, ...]  # kinds of LEFT that the sweep removed
    broken: str  # empty: all is as it must be


def config(root: Path) -> Config:
    """Short measurements with one thread, so that a round is short."""
    return Config(data_dir=str(root), install=Install(tune_s=0.2, cpu_share=0.001))


def rounds(count: int, packages: Sequence[Path], root: Path, seed: int) -> list[Round]:
    """Run ``count`` rounds over three packages of the model "dense" in the data directory."""
    rng = random.Random(seed)
    for path in packages[:2]:
        install(config(root), path)
    return [one(WHAT[n % len(WHAT)], packages, root, rng) for n in range(count)]


def one(what: str, packages: Sequence[Path], root: Path, rng: random.Random) -> Round:
    """One kill."""
    slots = Slots(root)
    before = slots.active("dense")
    assert before.current
    assert before.previous
    by_digest = {package.open(path).digest: path for path in packages}
    old, other = before.current.digest, before.previous.digest
    (third,) = by_digest.keys() - {old, other}
    new = third if what in ("install", "sweep") else other
    stage = kill(what, root, (by_digest[new], by_digest[old]), rng)
    try:
        served = check(slots, {old: "old"} if what == "sweep" else {old: "old", new: "new"})
        left = kinds(slots.sweep(), root)
        tidy(slots)
    except (AssertionError, EdgeError) as error:
        return Round(what, stage, "", (), f"{what} killed after '{stage}': {error}")
    return Round(what, stage, served, left, "")


def kill(what: str, root: Path, paths: Sequence[Path], rng: random.Random) -> str:
    """Start a process, kill it; returns the stage that it was in."""
    stage = rng.choice(list(STAGES)) if what == "install" else "go"
    wait_s = rng.uniform(0, STAGES[stage] if what == "install" else LOOP_S)
    arguments = ["--do", what, *map(str, (root, *paths))]
    command = [sys.executable, "-m", "benchmarks.agent_kills", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        seen = ""
        for line in process.stdout:
            seen = line.split()[0]
            if seen == stage:
                break
        time.sleep(wait_s)
        process.kill()
    return seen


def check(slots: Slots, expected: dict[str, str]) -> str:
    """Which package is served; AssertionError or EdgeError unless it is whole and right."""
    active = slots.active("dense")
    assert active.current, "nothing is served"
    assert active.current.digest in expected, f"{active.current.version} is served"
    for slot in filter(None, (active.current, active.previous)):
        slots.check(slot, everything=True)
    answers(slots, active.current)
    return expected[active.current.digest]


def answers(slots: Slots, slot: Slot) -> None:
    """Load the served file and replay its golden vectors."""
    folder = slots.folder(slot)
    model = slots.model(slot)
    adapter = runtimes.get(model.runtime.name)
    session = adapter.open(folder / model.entry, threads=1, options=model.runtime.options)
    vectors = golden.from_bytes((folder / "golden.npz").read_bytes())
    result = golden.check(vectors, session.run)
    assert result.ok, result.text


def tidy(slots: Slots) -> None:
    """AssertionError if anything is there that nothing names."""
    active = slots.active("dense")
    named = {slots.folder(slot).name for slot in (active.current, active.previous) if slot}
    home = slots.root / "models" / "dense"
    for folder, expected in (
        (home.parent, {".installing", ".lock", "dense"}),
        (home, {ACTIVE, "slots"}),
        (home / "slots", named),
    ):
        found = {path.name for path in folder.iterdir()}
        assert found == expected, f"{folder} holds {sorted(found ^ expected)}"


def kinds(swept: Sequence[Path], root: Path) -> tuple[str, ...]:
    """What sort of thing each swept path is."""
    texts = (str(path.relative_to(root)) for path in swept)
    return tuple(
        next(kind for kind, marks in LEFT.items() if any(mark in text for mark in marks))
        for text in texts
    )


def do(what: str, root: Path, new: Path, old: Path) -> None:
    """The process that is killed; all but an installation go on until then."""
    slots = Slots(root)
    runtimes.get("onnxruntime").version()  # imported before the clock runs
    print("go", flush=True)
    if what == "install":
        install(config(root), new, progress=lambda line: print(line, flush=True))
        return
    for path in itertools.cycle((new, old)):
        if what == "switch":
            install(config(root), path)
        elif what == "rollback":
            slots.rollback("dense", refuse=False)
        else:
            with slots.installing():
                opened = package.open(new)
                slots.unpack(opened, opened.manifest.variants[0])
            slots.sweep()


def report(found: Sequence[Round]) -> Table:
    """One row for each thing that was killed."""
    table = Table("killed", "rounds", "old served", "new served", *LEFT, "broken")
    for what in WHAT:
        mine = [kill for kill in found if kill.what == what]
        served = Counter(kill.serves for kill in mine)
        left = Counter(kind for kill in mine for kind in set(kill.left))
        broken = sum(bool(kill.broken) for kill in mine)
        counts = (len(mine), served["old"], served["new"], *(left[kind] for kind in LEFT), broken)
        table.add_row(what, *map(str, counts))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--do", nargs=4, metavar=("WHAT", "ROOT", "NEW", "OLD"))
    asked = parser.parse_args()
    if asked.do:
        what, *paths = asked.do
        do(what, *map(Path, paths))
        return 0
    packages = [agent_packages.dense(str(number)) for number in (1, 2, 3)]
    with tempfile.TemporaryDirectory(prefix="edge-kills-") as folder:
        found = rounds(asked.rounds, packages, Path(folder) / "agent", asked.seed)
    console.stdout().print(report(found))
    stages = Counter(kill.stage for kill in found if kill.what == "install")
    named = {"go": "start", "1": "tuned", "dense": "switched"}
    texts = (f"{named.get(stage, stage)} {number}" for stage, number in stages.items())
    print("installations were killed after:", ", ".join(texts))
    broken = [kill.broken for kill in found if kill.broken]
    print("\n".join(broken) or f"met     {len(found)} kills: always one of the two valid packages")
    return 2 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

"""Packaging: the winner with golden vectors, card, SBOM and recipe in one file; a report beside it.

Numbers that vary from run to run (time, memory) are in the report only, so that the same inputs
give the same package, byte for byte (docs/adr/0004).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from edge_core.files import storage_error, write_atomic
from edge_core.package import format as package
from edge_core.package import golden
from edge_core.package.format import PackageRef
from edge_core.package.manifest import (
    CARD,
    SBOM,
    Gate,
    Manifest,
    RuntimeNeed,
    Selector,
    Variant,
)
from edge_core.package.oci import Blob
from edge_core.profile import Profile
from edge_core.runtimes import sample_store
from edge_core.tensors import TensorSpec
from edge_sdk.build import bundle, card, golden_vectors, io_layout, judge, policy, report, sbom
from edge_sdk.build.materials import Materials
from edge_sdk.build.request import BuildRequest
from edge_sdk.build.stages import Artifact, GateResult, Measurement, Plan, Verdict, to_json
from edge_sdk.build.trials import CandidateTrial, ProfileTrials
from edge_sdk.build.workspace import Workspace

GOLDEN = 3  # samples replayed on the device before a package is used
# Values that two runs on the same inputs agree on, and so may be in the package.
STABLE = ("package_mb", "accuracy_drop_points", "agreement", "cosine")


class BuildResult(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome for one profile."""

    profile: str
    verdict: Verdict
    plan: Plan
    measurements: tuple[Measurement, ...]
    package: Path | None  # None when nothing fits
    digest: str
    bytes: int
    report_html: Path
    report_json: Path
    seconds: dict[str, float]  # wall time by stage, of the whole build so far


@dataclass(frozen=True)
class Part:
    """A variant and where its files come from."""

    variant: Variant
    artifact: Artifact
    files: dict[str, Path | bytes]  # path in the variant -> source


def check_writable(out: Path) -> None:
    """Fail before hours of work, not after: raises StorageError."""
    probe = out / ".edge-writable"
    write_atomic(probe, b"")
    try:
        probe.unlink(missing_ok=True)  # another build may probe the same folder
    except OSError as error:
        raise storage_error(error, out) from error


def make_part(
    request: BuildRequest,
    materials: Materials,
    profile: Profile,
    trials: ProfileTrials,
    verdict: Verdict,
    workspace: Workspace,
) -> Part | None:
    """The variant of the profile's winner with the sources of its files; None without a winner."""
    winner = next((trial for trial in trials if trial.candidate.name == verdict.winner), None)
    if winner is None:
        return None
    return _make_part(request, materials, profile, winner, verdict, workspace)


def write_packages(
    request: BuildRequest, materials: Materials, parts: Mapping[str, Part]
) -> dict[str, PackageRef]:
    """Profile -> its package: one a profile, or one for all of them.

    ``parts`` are by the name of the profile; one that has no winner has none. Raises StorageError,
    and InputError for a bundle of profiles that no device can tell apart.
    """
    if not request.bundle or not parts:
        return {
            name: _write_package(request, materials, (part,), name) for name, part in parts.items()
        }
    profiles = [profile for profile in request.profiles if profile.name in parts]
    ordered_parts = [parts[profile.name] for profile in profiles]
    variants = bundle.order_variants(
        profiles,
        [part.variant for part in ordered_parts],
        [_digests(part) for part in ordered_parts],
    )
    bundled = tuple(replace(parts[variant.profiles[0]], variant=variant) for variant in variants)
    return dict.fromkeys(parts, _write_package(request, materials, bundled, "bundle"))


def write_report(
    request: BuildRequest,
    materials: Materials,
    profile: Profile,
    plan: Plan,
    trials: ProfileTrials,
    verdict: Verdict,
    ref: PackageRef | None,
    seconds: Mapping[str, float],
) -> BuildResult:
    """Write the profile's report beside its package, if it has one; raises StorageError."""
    start = time.perf_counter()
    stem = _stem(request, materials, profile.name)
    spent = dict(seconds)
    spent["package and report"] = spent.get("package and report", 0) + time.perf_counter() - start
    content = report.Report(
        model=materials.model,
        profile=profile,
        plan=plan,
        measurements=tuple(trial.measurement for trial in trials),
        verdict=verdict,
        artifacts=tuple(trial.artifact for trial in trials if trial.artifact),
        notes=materials.prepared.notes,
        metric=materials.metric,
        evaluation=f"{materials.evaluation.source}, {len(materials.evaluation)} samples",
        package=ref.path.name if ref else "",
        digest=ref.digest if ref else "",
        variants=ref.variants if ref else (),
        host=f"{materials.host.cpu.model}, {materials.host.cpu.cores} cores",
        seconds=spent,
    )
    html, raw = request.out / f"{stem}.report.html", request.out / f"{stem}.report.json"
    write_atomic(html, report.render(content).encode())
    write_atomic(raw, to_json(content, indent=1))
    return BuildResult(
        profile=profile.name,
        verdict=verdict,
        plan=plan,
        measurements=tuple(trial.measurement for trial in trials),
        package=ref.path if ref else None,
        digest=ref.digest if ref else "",
        bytes=ref.bytes if ref else 0,
        report_html=html,
        report_json=raw,
        seconds=spent,
    )


def _stem(request: BuildRequest, materials: Materials, suffix: str) -> str:
    """How the files of a build are named: model, version, and whom it is for."""
    version = request.version or materials.model.sha256[:12]
    return f"{request.name or request.model.stem}-{version}-{suffix}"


def _digests(part: Part) -> dict[str, str]:
    return {path: Blob.of(part.files[path]).digest for path in part.variant.model_files}


def _make_part(
    request: BuildRequest,
    materials: Materials,
    profile: Profile,
    winner: CandidateTrial,
    verdict: Verdict,
    workspace: Workspace,
) -> Part:
    """The variant of one profile's winner, with the sources of its files."""
    candidate, artifact, env = winner.candidate, winner.artifact, winner.env
    assert artifact  # a candidate that could not be converted or run never wins
    assert env
    judgement = next(one for one in verdict.judgements if one.candidate == verdict.winner)
    entry = f"model{candidate.spec.suffix}"
    files = {
        **_model_files(artifact.path, entry),
        "golden.npz": _golden(materials, winner, workspace).to_bytes(),
        "recipe.json": _recipe(request, materials, artifact),
    }
    variant = Variant(
        name=profile.name,
        selector=Selector(
            arch=profile.platform.arch,
            os=profile.platform.os,
            cpu_features=policy.find_required_features(artifact.candidate, profile),
        ),
        profiles=(profile.name,),
        candidate=artifact.candidate,
        precision=artifact.precision or candidate.spec.precision,
        runtime=RuntimeNeed(
            name=env.name,
            version=candidate.runtime.version,
            measured_on=env.version,
            options=artifact.options,
        ),
        files=tuple(sorted(files)),
        entry=entry,
        inputs=_with_layout(artifact.inputs, request),
        outputs=artifact.outputs,
        preprocess=io_layout.recipe(request.preprocess, artifact.inputs),
        gates=tuple(_stable(gate) for gate in judgement.gates),
        toolchain=artifact.toolchain,
    )
    return Part(variant=variant, artifact=artifact, files=files)


def _write_package(
    request: BuildRequest, materials: Materials, parts: tuple[Part, ...], suffix: str
) -> PackageRef:
    """One package of the parts, in their order; raises StorageError, InputError."""
    manifest = Manifest(
        name=request.name or request.model.stem,
        version=request.version or materials.model.sha256[:12],
        model_sha256=materials.model.sha256,
        labels=request.class_names or materials.evaluation.class_names,
        class_scores=materials.metric in ("top1", "top5", "agreement"),
        variants=tuple(part.variant for part in parts),
    )
    files = {
        part.variant.title(path): source for part in parts for path, source in part.files.items()
    }
    artifacts = {part.variant.name: part.artifact for part in parts}
    files[CARD] = card.render_card(manifest, artifacts).encode()
    files[SBOM] = sbom.make_sbom(manifest, files)
    out = request.out / f"{_stem(request, materials, suffix)}.edgepkg"
    return package.write(out, manifest, files)


def _model_files(path: Path, entry: str) -> dict[str, Path | bytes]:
    """The files of an artifact below ``entry``, which is a file or a folder as the artifact is."""
    if not path.is_dir():
        return {entry: path}
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {f"{entry}/{file.relative_to(path).as_posix()}": file for file in files}


def _with_layout(inputs: tuple[TensorSpec, ...], request: BuildRequest) -> tuple[TensorSpec, ...]:
    if request.preprocess is None or len(inputs) != 1 or inputs[0].layout:
        return inputs
    return (msgspec.structs.replace(inputs[0], layout=request.preprocess.layout),)


def _stable(result: GateResult) -> Gate:
    if judge.GATES[result.gate].value in STABLE:
        return Gate(
            result.gate, result.limit, result.outcome, result.value.value, result.value.unit
        )
    return Gate(result.gate, result.limit, "see the report", None, result.value.unit)


def _golden(materials: Materials, winner: CandidateTrial, workspace: Workspace) -> golden.Golden:
    """Golden vectors of the first samples, from what the measuring children answered."""
    artifact = winner.artifact
    assert artifact
    assert winner.outputs
    model, feeds = materials.model, materials.feeds
    fitted = io_layout.fit_samples(workspace, feeds, model.inputs, artifact.inputs)
    samples = range(min(GOLDEN, len(materials.evaluation)))
    inputs, original = golden_vectors.read(
        fitted, winner.original, samples, model.outputs, artifact.outputs
    )
    answers = sample_store.read(winner.outputs)
    return golden_vectors.make(
        inputs, original, tuple(answers[sample] for sample in samples), artifact.outputs
    )


def _recipe(request: BuildRequest, materials: Materials, artifact: Artifact) -> bytes:
    """How the artifact was made. Samples by content: where they lay is no part of the build."""
    recipe = {
        "candidate": artifact.candidate,
        "calibration_sha256": materials.calibration.name if materials.calibration else None,
        "evaluation_sha256": materials.evaluation.digest,
        "evaluation_samples": len(materials.evaluation),
        "shapes": request.shapes,
        "batch": request.batch,
        "preprocess": request.preprocess,
        "written_for": artifact.written_for,
        "notes": artifact.notes,
        "toolchain": artifact.toolchain,
    }
    return to_json(recipe, indent=1)

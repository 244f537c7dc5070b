"""The model card inside a package: Markdown for people, from values that never vary.

Times and memory are not here but in the report beside the package (docs/adr/0004).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from edge_core.package.manifest import Gate, Manifest, Variant
from edge_core.tensors import TensorSpec
from edge_sdk.build.stages import Artifact


def render_card(manifest: Manifest, artifacts: Mapping[str, Artifact]) -> str:
    """The card of a package; ``artifacts`` are those of its variants, by name of the variant."""
    sections = [f"# {_text(manifest.name)} {_text(manifest.version)}", _devices(manifest)]
    for variant in manifest.variants:
        sections += _variant_sections(manifest, variant, artifacts[variant.name])
    sections += ["## How to run it\n\n" + _run(manifest), "## Limits\n\n" + _limits(manifest)]
    return "\n\n".join(sections) + "\n"


def _devices(manifest: Manifest) -> str:
    """What a device gets: one sentence, or a table of the variants in the order of choice."""
    if len(manifest.variants) == 1:
        return _summary(manifest.variants[0])
    rows = [(_code(variant.name), _summary(variant)) for variant in manifest.variants]
    return "A device gets the first of these variants that matches it.\n\n" + _table(
        ("variant", "what it is"), rows
    )


def _variant_sections(manifest: Manifest, variant: Variant, artifact: Artifact) -> list[str]:
    several = len(manifest.variants) > 1
    of = f" of {_code(variant.name)}" if several else ""
    return [
        f"## The file{of}\n\n" + _table(("", ""), _file(manifest, variant, artifact)),
        f"## Inputs and outputs{of}\n\n" + _tensors(manifest, variant),
        f"## Preprocessing{of}\n\n" + _preprocessing(variant),
        f"## How it was judged{of}\n\n" + _describe_gates(variant),
        f"## Made with{of}\n\n" + _table(("distribution", "version"), variant.toolchain.items()),
    ]


def _summary(variant: Variant) -> str:
    profiles = ", ".join(_code(profile) for profile in variant.profiles)
    return (
        f"A model in {_text(variant.precision)}, made by the recipe {_code(variant.candidate)} "
        f"for {profiles} ({_text(variant.selector.arch)}, {_text(variant.selector.os)}). "
        f"It runs on {_text(variant.runtime.name)} {_text(variant.runtime.version)}, offline."
    )


def _file(manifest: Manifest, variant: Variant, artifact: Artifact) -> list[tuple[str, str]]:
    rows = [
        ("file", _code(variant.entry)),
        ("bytes", f"{artifact.bytes:,}"),
        ("SHA-256", _code(artifact.sha256)),
        ("made from a model with SHA-256", _code(manifest.model_sha256)),
        ("written for", ", ".join(f"{name} {text}" for name, text in artifact.written_for.items())),
    ]
    if artifact.quantised_share is not None:
        share = f"{artifact.quantised_share:.1%}"
        rows.append(("share of the weight bytes that is quantised", share))
    if variant.runtime.options:
        items = sorted(variant.runtime.options.items())
        options = ", ".join(f"{name}={value}" for name, value in items)
        rows.append(("runtime options", _code(options)))
    return rows + [("note", _text(note)) for note in artifact.notes]


def _tensors(manifest: Manifest, variant: Variant) -> str:
    def row(role: str, spec: TensorSpec) -> tuple[str, ...]:
        shape = " x ".join(map(str, spec.shape)) or "scalar"
        return role, _code(spec.name), spec.dtype, _text(shape), spec.layout

    inputs = [row("input", spec) for spec in variant.inputs]
    outputs = [row("output", spec) for spec in variant.outputs]
    table = _table(("", "name", "type", "shape", "layout"), inputs + outputs)
    if not manifest.labels:
        return table
    return f"{table}\n\nThe labels of {len(manifest.labels)} classes are in the package."


def _preprocessing(variant: Variant) -> str:
    recipe = variant.preprocess
    if recipe is None:
        return "None: inputs are tensors as the model takes them."
    crop = (
        f"the central {recipe.crop_fraction:.1%}"
        if recipe.fit == "center-crop"
        else "the whole image"
    )
    size = f"{recipe.width} x {recipe.height}"
    values = f"(value x {recipe.scale:.6g} - {list(recipe.mean)}) / {list(recipe.std)}"
    return (
        f"An image is decoded to {recipe.color}; {crop} is resized to {size} "
        f"({recipe.interpolation}); then {_code(values)}, as {recipe.dtype} in {recipe.layout}."
    )


def _describe_gates(variant: Variant) -> str:
    if not variant.gates:
        return "The profile sets no budget, so nothing was gated."
    measured = f"{_text(variant.runtime.name)} {_text(variant.runtime.measured_on)}"
    return (
        _table(("gate", "limit", "value", "outcome"), (_gate(gate) for gate in variant.gates))
        + f"\n\nMeasured on {measured} against the original model, on the evaluation samples of "
        "`recipe.json`. Times and memory vary from run to run: they are in the report that was "
        "written beside the package."
    )


def _gate(gate: Gate) -> tuple[str, ...]:
    unit = f" {gate.unit}" if gate.unit else ""
    limit = "" if gate.limit is None else f"{gate.limit:g}{unit}"
    value = "" if gate.value is None else f"{gate.value:.4g}{unit}"
    name = f"{_code(gate.name)} for {_code(gate.profile)}" if gate.profile else _code(gate.name)
    return name, limit, value, gate.outcome


def _run(manifest: Manifest) -> str:
    source = "photo.jpg" if manifest.variants[0].preprocess else "inputs.npz"
    return (
        "```console\n"
        "$ edge-agent verify PACKAGE.edgepkg\n"
        f"$ edge-agent infer PACKAGE.edgepkg {source}\n"
        "```\n\n"
        "`verify` checks every digest and replays the golden vectors on the device."
    )


def _limits(manifest: Manifest) -> str:
    older = {
        f"- It was measured on {_text(runtime.name)} {_text(runtime.measured_on)}, the device "
        f"has {_text(runtime.version)}: verify it there.\n": None
        for runtime in (variant.runtime for variant in manifest.variants)
        if runtime.measured_on != runtime.version
    }
    return (
        "".join(older)
        + "- Accuracy is that of the evaluation samples; other data may fare worse.\n"
        "- What the original model was made for, and with which data, its author knows: the "
        "conversion adds no ability and removes no bias.\n"
        "- It was judged for the profiles named above and for no other device."
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: str) -> str:
    """One line in which nothing is markup: names and notes come from users and converters."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(value.split()))


def _code(value: str) -> str:
    """A code span; a backtick or bar in it would end the span or the table's cell."""
    return "`" + " ".join(value.split()).replace("`", "'").replace("|", "/") + "`"

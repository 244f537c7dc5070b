"""A recipe that leaves a model as it was is a failed candidate, whatever the format."""

from __future__ import annotations

from edge_core.errors import ConvertError

LEAST_REDUCTION = (
    0.05  # share of the weight bytes that a recipe takes; less is not worth a candidate
)


def require_reduction(before: tuple[int, int], after: tuple[int, int], name: str) -> None:
    """Raise ConvertError if hardly any weights of the model ``name`` were taken.

    Both are bytes of weights in integers of at most 8 bits, and in other types.
    """
    (small, large), (_, left) = before, after
    reduced_share = (large - left) / (small + large) if large else 0.0
    if reduced_share < LEAST_REDUCTION:
        raise ConvertError(
            f"no-op: the recipe takes {max(reduced_share, 0.0):.1%} of the weight bytes of "
            f"{name}, less than {LEAST_REDUCTION:.0%}",
            hint="its weights are in ops that the recipe leaves alone, or are quantised already",
        )

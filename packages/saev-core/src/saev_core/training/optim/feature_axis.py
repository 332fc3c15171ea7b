"""Where features lie in a parameter."""

from __future__ import annotations

from torch.nn import Parameter

WITHOUT = ("b_dec", "W_skip")
"""Parameters that have no features, though a width of theirs may happen to be d_sae."""


def axis_of(name: str, p: Parameter, d_sae: int) -> int | None:
    """The axis of a parameter along which its features lie; None if it has none.

    `W_enc` is `[d_in, d_sae]`, everything else has features first: with d_in = d_sae the name decides.
    """
    axis = p.ndim - 1 if name == "W_enc" else 0
    return axis if p.ndim and p.shape[axis] == d_sae and name not in WITHOUT else None

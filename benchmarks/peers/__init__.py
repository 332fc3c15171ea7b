"""Other libraries' trainers behind one small interface, each driven through its public API with its own training step.

A step is what the library's own trainer does for one batch: forward, its loss, backward, its clipping and projections, its
optimiser and schedule. Logging and monitoring are off where there is an option for that. `make bench-setup` installs them into
`.venv-peers`; without them `available()` is empty.

The original (`saev`) publishes one old version, 0.1.0, that trains ReLU alone. Its TopK and BatchTopK stand in its repository
only: check that out and name the folder in `SAEV_HEAD`, and the peer `saev` is then the one found there.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

ROOMS = {
    "saev": "original",
    "sae_lens": "saelens",
    "dictionary_learning": "dictionaries",
    "overcomplete": "overcompletes",
    "sparsify": "sparse_coders",
}
"""Import name of each library and the module here that adapts it."""


@dataclass(frozen=True)
class Work:
    """What a peer is asked to train."""

    d_in: int
    d_sae: int
    k: int
    batch_size: int
    n_steps: int
    lr: float | None
    """None: the library's own choice."""
    l1: float | None
    """Sparsity coefficient in the library's own loss; None: its own choice."""
    seed: int
    device: str
    sample: Tensor | None
    """Vectors to initialise from, for a library that does so; None: it starts without them."""


class Peer(ABC):
    """One SAE of another library in training. Takes normalised vectors: mean 0, mean squared length d_in."""

    variants: ClassVar[tuple[str, ...]]
    """Which of `topk`, `batchtopk` and `relu` the library has."""

    note: str
    """Which of its recommended settings are in use."""

    model: Any
    """The library's own module."""

    @abstractmethod
    def step(self, x: Float[Tensor, "n d_in"]) -> None:
        """Train on one batch."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        """Codes in the form used for inference."""

    @abstractmethod
    def reconstruct(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        """Reconstruction in the form used for inference."""

    @property
    @abstractmethod
    def bias(self) -> Tensor:
        """The encoder's bias, `[d_sae]`, to be written to: sets the density of a ReLU."""

    def silence(self, n: int) -> None:
        """Let the first `n` latents never fire again and count as dead, as after long training.

        Raises:
            NotImplementedError: the library has no loss on dead latents.
        """
        raise NotImplementedError


def room(name: str) -> type[Peer]:
    """The adapter of a library, which is imported for it."""
    if name not in ROOMS:
        raise ValueError(f"no peer is called {name}; there are {', '.join(ROOMS)}.")
    found: type[Peer] = importlib.import_module(f"peers.{ROOMS[name]}").Adapter
    return found


def available() -> list[str]:
    """The libraries that are installed here."""
    from peers.original import head_folder

    return [name for name in ROOMS if importlib.util.find_spec(name) is not None or (name == "saev" and head_folder())]


def variants(name: str) -> tuple[str, ...]:
    """Which variants a library has."""
    return room(name).variants


def version(name: str) -> str:
    """What is measured: a version on the package registry, or the head of a repository."""
    from peers.original import head_folder

    if name == "saev" and head_folder():
        return "head"
    return importlib.metadata.version("eai-sparsify" if name == "sparsify" else name.replace("_", "-"))


def build(
    peer: str,
    variant: str,
    *,
    d_in: int,
    d_sae: int,
    k: int,
    batch_size: int,
    n_steps: int,
    lr: float | None = None,
    l1: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    sample: Tensor | None = None,
    **options: Any,
) -> Peer:
    """A library's SAE, ready for its first step.

    Args:
        peer: one of `available()`.
        variant: `topk`, `batchtopk` or `relu`.
        n_steps: steps in all, for schedules.
        lr: None is the library's own recommendation.
        l1: sparsity coefficient as the library's own loss weighs it.
        sample: `[n, d_in]` vectors for libraries that start from data.
        options: passed to the adapter; see each.

    Raises:
        ValueError: the library is unknown or lacks the variant.
    """
    adapter = room(peer)
    if variant not in adapter.variants:
        raise ValueError(f"{peer} has no {variant}; it has {', '.join(adapter.variants)}.")
    torch.manual_seed(seed)
    work = Work(d_in, d_sae, k, batch_size, n_steps, lr, l1, seed, device, sample)
    return adapter(variant, work, **options)  # type: ignore[call-arg]

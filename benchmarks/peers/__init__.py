"""Other libraries' trainers behind one small interface, each driven through its public API with its own training step.

A step is what the library's own trainer does for one batch: forward, its loss, backward, its clipping and projections, its
optimiser and schedule. Logging and monitoring are disabled where possible. `make bench-setup` installs the libraries into
`.venv-peers`; without them `available()` is empty.

The original (`saev`) has published one old version, 0.1.0, which trains only ReLU. Its TopK and BatchTopK are only in its
repository: check it out and set `SAEV_HEAD` to the folder, and the peer `saev` is then that checkout.
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
"""Import name of each library and the adapter module here."""


@dataclass(frozen=True)
class Work:
    """What a peer should train."""

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
    """Vectors to initialise from, if the library supports it; None: initialise without data."""


class Peer(ABC):
    """One SAE of another library during training. Takes normalised vectors: mean 0, mean squared length d_in."""

    variants: ClassVar[tuple[str, ...]]
    """Which of `topk`, `batchtopk` and `relu` the library has."""

    note: str
    """The settings in use, as text."""

    model: Any
    """The library's own module."""

    @abstractmethod
    def step(self, x: Float[Tensor, "n d_in"]) -> None:
        """Train on one batch."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        """Codes in inference form."""

    @abstractmethod
    def reconstruct(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        """Reconstruction in inference form."""

    @property
    @abstractmethod
    def bias(self) -> Tensor:
        """The encoder's bias, `[d_sae]`, writable: sets the density of a ReLU SAE."""

    def silence(self, n: int) -> None:
        """Make the first `n` features never fire again and count as dead, as after long training.

        Raises:
            NotImplementedError: the library has no loss on dead features.
        """
        raise NotImplementedError


def room(name: str) -> type[Peer]:
    """The adapter of a library, imported on demand."""
    if name not in ROOMS:
        raise ValueError(f"unknown peer {name}; available: {', '.join(ROOMS)}.")
    found: type[Peer] = importlib.import_module(f"peers.{ROOMS[name]}").Adapter
    return found


def available() -> list[str]:
    """The installed libraries."""
    from peers.original import head_folder

    return [name for name in ROOMS if importlib.util.find_spec(name) is not None or (name == "saev" and head_folder())]


def variants(name: str) -> tuple[str, ...]:
    """The variants of a library."""
    return room(name).variants


def version(name: str) -> str:
    """The measured version: one from the package registry, or the head of a repository."""
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
        n_steps: total number of steps, for schedules.
        lr: None: the library's own recommendation.
        l1: sparsity coefficient in the library's own loss.
        sample: `[n, d_in]` vectors for libraries that initialise from data.
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

"""Smoke test of every peer: two steps at a small size, then its reconstruction.

python -m peers (in benchmarks/)
"""

from __future__ import annotations

import torch

from peers import available, build, variants, version


def main() -> None:
    names = available()
    if not names:
        print("no peer is installed; make bench-setup installs them into .venv-peers.")
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    for name in names:
        for variant in variants(name):
            peer = build(name, variant, d_in=64, d_sae=512, k=8, batch_size=256, n_steps=100, sample=x.repeat(2, 1))
            for _ in range(2):
                peer.step(x)
            codes, made = peer.encode(x), peer.reconstruct(x)
            assert codes.shape == (256, 512)
            assert made.shape == x.shape
            assert bool(torch.isfinite(made).all())
            error = float((x - made).square().sum() / x.square().sum())
            print(f"{name} {version(name)} {variant}: L0 {float((codes != 0).sum()) / 256:.1f}, error {error:.3f}; {peer.note}")


if __name__ == "__main__":
    main()

"""Quality of the dictionaries of ours and of other libraries, on the same real activations, measured in the same way.

    python benchmarks/quality.py record                        # once: images and their activations, minutes
    python benchmarks/quality.py run [--impl ours] [--variant topk] [--seed 0] [--data photos] [--set k=16]
    python benchmarks/quality.py table                         # results so far, as markdown

Results are in `bench-cache/quality/`, one JSON file each; existing results are skipped, so runs can be stopped and
resumed. Peers need an environment that has them (see `benchmarks/peers`). Set-up and results: docs/quality.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import peers
import torch
from jaxtyping import Float
from torch import Tensor

from saev_core.activations.recording.identity import dataset_ref, model_ref
from saev_core.activations.recording.record import record
from saev_core.activations.sources.stored import StoreSource
from saev_core.activations.store.store import ActivationStore
from saev_core.config.base import PluginRef
from saev_core.config.stages import EvaluateConfig, ReadConfig, RecordConfig, TrainConfig
from saev_core.data.dataset import load_dataset
from saev_core.data.shapes import Shapes, ShapesConfig
from saev_core.evaluation.known_truth import recover
from saev_core.evaluation.measure import Tally
from saev_core.models.base import load_model
from saev_core.sae.base import SAE, make_sae
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.codes import Codes
from saev_core.sae.config import SAEConfig
from saev_core.sae.norm import Norm
from saev_core.training.train import TrainSpec, train

ROOT = Path(__file__).resolve().parent.parent / "bench-cache" / "quality"
STAMPS = Path("/usr/share/tuxpaint/stamps")
"""Debian's tuxpaint-stamps-default."""
N_FASHION, N_CROPS = 600, 40
LAYER, LAST = 9, 11
"""Blocks, from 0. Block 9's output is Hugging Face's hidden state 10, because its state 0 is the embedding."""
BATCH, HELDOUT = 2048, 0.15
SIZES = {"photos": {"d_sae": 3072, "k": 32, "n_steps": 1000}, "shapes": {"d_sae": 1024, "k": 16, "n_steps": 1000}}
"""Width, active features and steps for each of the two stores."""
VARIANTS = ("topk", "batchtopk", "relu")
WITH_K = ("topk", "batchtopk", "matryoshka", "archetypal", "mp")


def make_pictures(folder: Path) -> int:
    """Write the images to three class folders, deterministically, and return their number."""
    from PIL import Image

    from saev_core.data.decode import open_rgb
    from saev_datasets.fashion_mnist import FashionMnist, FashionMnistConfig
    from saev_datasets.photos import Photos, PhotosConfig

    stamps = sorted(STAMPS.rglob("*.png"))
    if not stamps:
        raise SystemExit(f"{STAMPS} has no images: apt install tuxpaint-stamps-default dataset-fashion-mnist")
    for name in ("stamps", "fashion", "photos"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for file in stamps:
        image = open_rgb(file)
        image.thumbnail((448, 448), Image.Resampling.LANCZOS)
        image.save(folder / "stamps" / ("-".join(file.relative_to(STAMPS).parts)))
    clothes = FashionMnist(FashionMnistConfig(split="test"))
    for index in range(N_FASHION):
        clothes[index].image.save(folder / "fashion" / f"{index:03}.png")
    for file in Photos(PhotosConfig(n=1)).files:
        picture = open_rgb(file)
        rng = Random(f"crops of {file.name}")
        for index in range(N_CROPS):
            side = round(min(picture.size) * (0.25 + 0.5 * rng.random()))
            left, top = rng.randint(0, picture.width - side), rng.randint(0, picture.height - side)
            crop = picture.crop((left, top, left + side, top + side))
            crop.thumbnail((448, 448), Image.Resampling.LANCZOS)
            crop.save(folder / "photos" / f"{file.stem}-{index:02}.png")
    return sum(1 for _ in folder.rglob("*.png"))


def record_all() -> None:
    """Write the images, record their activations with our recorder, and compute one embedding per image."""
    pictures = ROOT / "pictures"
    if not (ROOT / "pictures.json").exists():
        (ROOT / "pictures.json").write_text(json.dumps({"n": make_pictures(pictures)}))
    for name, model, dataset, layers in (
        ("photos", PluginRef(name="dinov2-focus"), PluginRef(name="image-folder", options={"root": str(pictures)}), (LAYER, LAST)),
        ("shapes", PluginRef(name="tiny"), PluginRef(name="shapes"), (-2,)),
    ):
        loaded = load_model(model)
        cfg = RecordConfig(layers=layers, batch_size=16)
        done = record(
            loaded,
            load_dataset(dataset),
            ROOT / f"{name}.store",
            cfg,
            model_ref=model_ref(model),
            dataset_ref=dataset_ref(dataset),
        )
        print(f"{name}: {done}")
    store = ActivationStore.open(ROOT / "photos.store")
    norm: Any = load_model(PluginRef(name="dinov2-focus")).get_submodule("vit.layernorm")
    cls = torch.from_numpy(np.asarray(store.read(store.resolve(LAST), np.arange(store.n_images), "prefix"))).float()[:, 0]
    with torch.no_grad():
        torch.save(torch.nn.functional.normalize(norm(cls), dim=1), ROOT / "embeddings.pt")


# Training and measuring one implementation.


class Wrapped(SAE):
    """Another library's trained SAE with our interface, so that both are measured by the same code."""

    def __init__(self, peer: peers.Peer, d_in: int, d_sae: int) -> None:
        super().__init__(SAEConfig(d_in=d_in, d_sae=d_sae))
        self.peer = peer
        self._last: Tensor | None = None

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        self._last = x
        z: Tensor = self.peer.encode(x)
        return z

    @torch.no_grad()
    def decode(self, z: Tensor | Codes) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction of the vectors encoded last, because some libraries reconstruct only from the vectors themselves."""
        assert self._last is not None
        x_hat: Tensor = self.peer.reconstruct(self._last)
        return x_hat


@dataclass(frozen=True)
class Work:
    """One SAE to train and measure, which identifies its result."""

    impl: str
    """`ours`, or the name of a library."""
    variant: str
    seed: int
    """Seed of the initialisation and of the order of the vectors."""
    data: str
    size: dict[str, int]
    """`d_sae`, `k` and `n_steps`."""
    options: dict[str, Any]
    """Settings that differ from the recommended ones."""

    @property
    def path(self) -> Path:
        """The file of its result."""
        plain = not self.options and self.size == SIZES[self.data]
        other = "" if plain else "-" + hashlib.sha256(repr([self.options, self.size]).encode()).hexdigest()[:8]
        return ROOT / "results" / f"{self.data}-{self.impl}-{self.variant}-s{self.seed}{other}.json"


def train_ours(source: StoreSource, work: Work) -> tuple[SAE, str, float]:
    """The trained SAE, its settings as text, and the training time in seconds."""
    chosen = {key[6:]: value for key, value in work.options.items() if key.startswith("train.")}
    options = {key: value for key, value in work.options.items() if not key.startswith("train.")}
    cfg = TrainConfig.model_validate({"batch_size": BATCH, "n_tokens": BATCH * work.size["n_steps"], "seed": work.seed, **chosen})
    k = {"k": work.size["k"]} if work.variant in WITH_K else {"l0": work.size["k"]} if work.variant == "jumprelu" else {}
    sae = make_sae(PluginRef(name=work.variant, options={"d_sae": work.size["d_sae"], **k, **options}), source.d_model, work.seed)
    began = time.perf_counter()
    (made,) = train(source, [TrainSpec(work.variant, sae)], cfg)
    return made.sae, f"lr {made.train['lr']:.2g}", time.perf_counter() - began


def train_peer(source: StoreSource, work: Work) -> tuple[SAE, str, float]:
    """The same for another library: the same normalised vectors, in the same batches, in the same order."""
    sample = source.norm(source.sample(65_536, work.seed))
    size: Any = work.size
    given = {"d_in": source.d_model, "batch_size": BATCH, "seed": work.seed, "sample": sample, **size, **work.options}
    peer = peers.build(work.impl, work.variant, **given)
    stream = source.batches(BATCH, work.seed)
    began = time.perf_counter()
    try:
        for _ in range(work.size["n_steps"]):
            peer.step(source.norm(next(stream)))
    finally:
        stream.close()
    return Wrapped(peer, source.d_model, work.size["d_sae"]), peer.note, time.perf_counter() - began


@torch.no_grad()
def measure(sae: SAE, norm: Norm, store: ActivationStore, source: StoreSource, embeddings: Tensor | None) -> dict[str, float]:
    """Metrics on the held-out images; `ms` if the images have embeddings."""
    sae = sae.frozen()
    images = np.flatnonzero(source.heldout)
    tally, highest = Tally(sae.d_in, sae.d_sae), torch.zeros(len(images), sae.d_sae)
    n_patches, at = store.grid.n_patches, 0
    for index, raw, _ in source.in_order(images, 8):
        x = norm(raw.flatten(0, 1))
        codes = sae.codes(x)
        tally.add(x, sae.decode(codes), codes)
        row = at + codes.rows // n_patches
        highest.view(-1).scatter_reduce_(0, row * sae.d_sae + codes.feature, codes.value, "amax")
        at += len(index)
    card = tally.result(EvaluateConfig()).card
    found = {key: card[key] for key in ("nmse", "l0", "dead", "dense")}
    if embeddings is not None:
        found["ms"], found["ms_base"] = monosemanticity(highest, embeddings[torch.from_numpy(images)])
    return found


def monosemanticity(a: Float[Tensor, "n m"], e: Float[Tensor, "n d"]) -> tuple[float, float]:
    """Mean over features of sum_{i<j} a_i a_j cos(e_i, e_j) / sum_{i<j} a_i a_j, and the mean cosine of all pairs.

    Args:
        a: each feature's highest activation on each image; scaled to 0..1 here. Features active on fewer than two images are excluded.
        e: image embeddings of length 1.

    Source: arXiv 2602.12403.
    """
    a, e = a.double(), e.double()
    low, high = a.amin(0), a.amax(0)
    a = ((a - low) / (high - low).clamp_min(1e-30))[:, high > low]
    square = a.square().sum(0)
    pairs = a.sum(0).square() - square
    same = (a.T @ e).square().sum(1) - square
    keep = (a > 0).sum(0) >= 2
    n = len(e)
    base = (float(e.sum(0).square().sum()) - n) / (n * (n - 1))
    return float((same[keep] / pairs[keep]).mean()), base


def one(work: Work) -> dict[str, Any]:
    """Train one SAE and measure it."""
    photos = work.data == "photos"
    store = ActivationStore.open(ROOT / f"{work.data}.store")
    source = StoreSource(store, ReadConfig(layer=LAYER if photos else -2, heldout=HELDOUT))
    how = train_ours if work.impl == "ours" else train_peer
    sae, settings, seconds = how(source, work)
    embeddings = torch.load(ROOT / "embeddings.pt", weights_only=True) if photos else None
    found: dict[str, Any] = measure(sae, source.norm, store, source, embeddings)
    if not photos:
        told = source.describe()
        checkpoint = Checkpoint(sae, source.norm, {"name": work.impl}, source.site, source.read, told["store"])
        found["recovery"] = recover(checkpoint, source, Shapes(ShapesConfig())).mean
    version = "" if work.impl == "ours" else peers.version(work.impl)
    return {
        **found,
        "seconds": seconds,
        "settings": settings,
        "version": version,
        "threads": torch.get_num_threads(),
        "matmul": torch.get_float32_matmul_precision(),
    }


def run(work: Work) -> None:
    """Run `one`, unless its result exists."""
    if work.path.exists():
        return
    found = one(work)
    work.path.parent.mkdir(parents=True, exist_ok=True)
    work.path.write_text(json.dumps({**asdict(work), **found}, indent=1))
    shown = {key: round(found[key], 4) for key in ("nmse", "l0", "dead", "dense", "ms", "recovery", "seconds") if key in found}
    print(work.data, work.impl, work.variant, f"seed {work.seed}", work.options or "", shown, flush=True)


def results() -> Iterator[dict[str, Any]]:
    for path in sorted((ROOT / "results").glob("*.json")):
        yield json.loads(path.read_text())


def table() -> None:
    """Print all results as markdown: mean and standard deviation over seeds, and the number of seeds."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for found in results():
        plain = found["size"] == SIZES[found["data"]]
        extra = " ".join(f"{key}={value}" for key, value in {**found["options"], **({} if plain else found["size"])}.items())
        name = (found["impl"] + (" " + found["version"] if found["version"] else "") + (f" ({extra})" if extra else "")).strip()
        groups.setdefault((found["data"], found["variant"], name), []).append(found)
    for data, size in SIZES.items():
        last = "ms" if data == "photos" else "recovery"
        forms = {"nmse": ".4f", "l0": ".1f", "dead": ".3f", "dense": ".2f", last: ".3f", "seconds": ".0f"}
        mine = [(key[1:], rows) for key, rows in groups.items() if key[0] == data]
        mine.sort(key=lambda item: (item[0][0], statistics.mean(row["nmse"] for row in item[1])))
        print(f"\n{data}: {size}\n\n| variant | trainer | {' | '.join(forms)} | seeds |\n|{' --- |' * (len(forms) + 3)}")
        for (variant, name), rows in mine:
            cells = [spread([row[key] for row in rows], form) for key, form in forms.items()]
            print(f"| {variant} | {name} | {' | '.join(cells)} | {len(rows)} |")


def spread(values: list[float], form: str) -> str:
    """Mean, and standard deviation if there is more than one value."""
    mean = format(statistics.mean(values), form)
    return mean if len(values) < 2 else f"{mean} ± {format(statistics.stdev(values), form)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="table", choices=("record", "run", "table"))
    parser.add_argument("--impl", action="append", help="ours, or a library; repeatable (default: all installed)")
    parser.add_argument("--variant", action="append", help="repeatable (default: topk, batchtopk, relu)")
    parser.add_argument("--seed", action="append", type=int, help="repeatable (default: 0, then 1 and 2)")
    parser.add_argument("--data", default="photos", choices=tuple(SIZES))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="k, d_sae, n_steps, train.lr, or an option")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--matmul", choices=["highest", "high", "medium"], default="highest", help="torch's precision of float32 matmuls, for every library"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_float32_matmul_precision(given.matmul)
    if given.what == "record":
        record_all()
    elif given.what == "table":
        table()
    else:
        size: dict[str, int] = dict(SIZES[given.data])
        options: dict[str, Any] = {}
        for key, value in (pair.split("=", 1) for pair in given.set):
            (size if key in size else options)[key] = json.loads(value) if value[:1] in "0123456789-tf[" else value
        for seed in given.seed or (0, 1, 2):
            for impl in given.impl or ("ours", *peers.available()):
                for variant in given.variant or VARIANTS:
                    if impl == "ours" or variant in peers.variants(impl):
                        run(Work(impl, variant, seed, given.data, size, options))


if __name__ == "__main__":
    main()

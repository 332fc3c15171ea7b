"""`saev task fidelity`: what the model loses downstream when the SAE's reconstruction replaces its activations."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from saev_core import ActivationStore, Checkpoint, Config, Downstream, SaevError, Site, Task, TaskContext, TextSpace, VisionModel, verb
from saev_core.activations.sources.heldout import heldout_mask
from saev_core.activations.store.shard_writer import RECORDED
from saev_core.errors import CheckpointError, ModelError, StoreError
from saev_core.interventions.edit import writes_where_it_reads
from saev_core.support.files import replace_file

if TYPE_CHECKING:
    from saev_core import ImageDataset

Pool = Literal["cls", "mean"]
VARIANTS = ("original", "sae", "zero", "mean")
"""What is spliced in at the site: the original activations, the SAE's reconstruction, zeros, or the mean over the training images."""
N_BOOTSTRAP = 1000
CLOSE = 0.05
"""Largest relative error allowed for an output computed from recorded activations; half precision causes about a thousandth."""


class FidelityConfig(Config):
    """Options of `saev task fidelity measure`."""

    sae: str = ""
    """SAE name; if empty, the best SAE."""
    site: str = ""
    """Site to splice at, such as resid.3; only for an SAE trained on all sites."""
    n_test: int = Field(default=1000, ge=1)
    """Maximum number of held-out images."""
    n_train: int = Field(default=2000, ge=1)
    """Maximum number of training images for the two classifiers."""
    batch_size: int = Field(default=32, ge=1)
    """Images per forward pass."""
    k: int = Field(default=10, ge=1)
    """Number of neighbours for k-NN."""
    prompt: str = "a photo of a {}."
    """Prompt for each class, for models with a text space; {} is replaced by the class name."""
    from_images: bool = False
    """Run the whole model on the images, instead of starting from the recorded activations."""
    seed: int = 0
    """Seed for sampling images and for the bootstrap."""


class Fidelity(Task):
    """How much of the model's output an SAE's reconstruction preserves."""

    @verb
    def measure(self, cx: TaskContext, cfg: FidelityConfig) -> dict[str, Any]:
        """Splice the reconstruction into the model: output error, and accuracy recovered against zero and mean ablation."""
        name = cx.sae_name(cfg.sae)
        checkpoint, store, model = cx.checkpoint(name), cx.store(), cx.model()
        writes_where_it_reads(checkpoint)
        site = _site(cfg, checkpoint)
        test, train = chosen(store, checkpoint, site, cfg)
        labels = store.labels
        n_classes = len(set(labels[train][labels[train] >= 0].tolist()))
        classified = n_classes > 1 and bool((labels[test] >= 0).any())
        texts, why = _texts(cx, model, labels[test], cfg)
        batches = _Batches(model, store, site, cx.dataset() if cfg.from_images else None, cfg.batch_size)
        if not cfg.from_images:
            _check_close(cx, batches, int(test[0]))
        pools: list[Pool] = ["cls", "mean"] if model.grid.n_prefix else ["mean"]
        y, embedded = _spliced_outputs(cx, checkpoint, batches, test, pools, texts is not None)
        known = _outputs(cx, batches, train, pools) if classified else {}
        result: dict[str, Any] = {
            "sae": name, "site": str(site), "tokens": checkpoint.read.tokens, "n_test": len(test), "n_classes": n_classes,
            "n_train": len(train) if classified else 0, "k": cfg.k, "from_images": cfg.from_images, "seed": cfg.seed,
            "features": pools[0], "outputs": {pool: errors(y[pool]) for pool in pools},
        }  # fmt: skip
        for pool in known:
            result["outputs"][pool] |= _accuracies(y[pool], known[pool], labels[test], labels[train], cfg)
        if not classified:
            result["classification_absent"] = "the store does not have labels of at least two classes"
            cx.say(f"Reporting only FVU and cosine: {result['classification_absent']}.")
        if texts is not None:
            right = {v: zero_shot(embedded[v], texts, labels[test]) for v in VARIANTS}
            result["zero_shot"] = row_of_hits(right, cfg.seed)
        else:
            result["zero_shot_absent"] = why
        rows = table(result)
        cx.table(rows, HEADER)
        _write_csv(cx.folder("fidelity.csv"), rows)
        cx.run.write_result("fidelity", result)
        return result


HEADER = ("output", "measure", *VARIANTS, "recovered (zero)", "recovered (mean)", "95 % (mean)")


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """Table rows for the result of `measure`."""
    listed = [(pool, name, row) for pool, rows in result["outputs"].items() for name, row in rows.items()]
    listed += [("embedding", "zero-shot accuracy", result["zero_shot"])] if "zero_shot" in result else []
    made = []
    for pool, name, row in listed:
        numbers = [row[variant] for variant in VARIANTS] + [row["recovered"][ablation] for ablation in ("zero", "mean")]
        interval = row.get("interval", {}).get("mean")
        about = "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
        made.append([pool, name, *("-" if number is None else f"{number:.4f}" for number in numbers), about])
    return made


def spliced(
    x: Float[Tensor, "batch n_tokens d_model"],
    checkpoint: Checkpoint,
    n_prefix: int,
    variant: str,
    mean: Float[Tensor, " d_model"],
) -> Float[Tensor, "batch n_tokens d_model"]:
    """Raw tokens with the vectors that the SAE reads replaced; all others are kept. For an SAE on patch means, the
    mean is replaced and each patch keeps its offset from it."""
    if variant == "original":
        return x
    tokens, old = checkpoint.read.tokens, checkpoint.selection.of_site(x, n_prefix).float()
    part = x[:, :1] if tokens == "cls" else x[:, n_prefix:]
    if variant == "sae":
        new = checkpoint.reconstruct(old).to(x.device)
    else:
        new = torch.zeros_like(old) if variant == "zero" else mean.to(old).expand_as(old)
    put = (part + (new - old) if tokens == "mean" else new).to(x.dtype)
    return torch.cat([put, x[:, 1:]] if tokens == "cls" else [x[:, :n_prefix], put], 1)


def errors(y: Mapping[str, Float[Tensor, "n d"]]) -> dict[str, dict[str, Any]]:
    """`fvu`: squared error over the variance about the mean output; `cosine`: mean over images of the cosine similarity to the original."""
    original = y["original"].double()
    spread = float((original - original.mean(0)).square().sum())
    fvu = {v: float((y[v].double() - original).square().sum()) / spread if spread > 0 else None for v in VARIANTS}
    cosine = {v: float(torch.cosine_similarity(y[v].double(), original, dim=1).mean()) for v in VARIANTS}
    return {"fvu": row_of(fvu, lower=True), "cosine": row_of(cosine)}


def row_of(values: Mapping[str, float | None], *, lower: bool = False) -> dict[str, Any]:
    """The four numbers, and for each ablation the share of its cost that the SAE recovers; None if it costs nothing."""
    return {**values, "recovered": {a: recovered(values["sae"], values[a], values["original"], lower=lower) for a in ("zero", "mean")}}


def recovered(m_sae: float | None, m_ablated: float | None, m_original: float | None, *, lower: bool = False) -> float | None:
    """(m_sae - m_ablated) / (m_original - m_ablated); None if the ablation costs nothing."""
    if m_sae is None or m_ablated is None or m_original is None:
        return None
    gap = m_original - m_ablated
    return (m_sae - m_ablated) / gap if (-gap if lower else gap) > 1e-9 else None


def row_of_hits(right: Mapping[str, Bool[np.ndarray, " n"]], seed: int) -> dict[str, Any]:
    """Accuracies, recovered shares, and their 95 % bootstrap intervals over images (None if an ablation costs almost nothing)."""
    row = row_of({v: float(right[v].mean()) for v in VARIANTS})
    rng, n = np.random.default_rng(seed), len(right["sae"])
    share = {v: np.asarray(right[v], float) for v in VARIANTS}
    drawn = rng.multinomial(n, np.full(n, 1 / n), N_BOOTSTRAP) / n  # [N_BOOTSTRAP, n]
    means = {v: drawn @ share[v] for v in VARIANTS}
    row["interval"] = {}
    for ablation in ("zero", "mean"):
        gap = means["original"] - means[ablation]
        sure = gap > 1e-9
        ratio = (means["sae"] - means[ablation])[sure] / gap[sure]
        row["interval"][ablation] = np.percentile(ratio, [2.5, 97.5]).tolist() if sure.mean() > 0.95 else None
    return row


def knn(
    bank: Float[Tensor, "n_train d"], labels: Int[np.ndarray, " n_train"], y: Float[Tensor, "n d"], k: int, temperature: float = 0.07
) -> Int[np.ndarray, " n"]:
    """k-NN class of each vector: votes of the `k` nearest training vectors by cosine, weighted by exp(cosine / temperature).

    Source: Wu et al. 2018, Unsupervised feature learning via non-parametric instance discrimination. https://arxiv.org/abs/1805.01978
    """
    normal = torch.nn.functional.normalize
    near = (normal(y, dim=1) @ normal(bank, dim=1).T).topk(min(k, len(bank)), dim=1)
    votes = torch.zeros(len(y), int(labels.max()) + 1, dtype=torch.float64)
    votes.scatter_add_(1, torch.as_tensor(labels)[near.indices].long(), (near.values.double() / temperature).exp())
    return np.asarray(votes.argmax(1).numpy())


def linear(
    bank: Float[Tensor, "n_train d"], labels: Int[np.ndarray, " n_train"], y: Mapping[str, Float[Tensor, "n d"]]
) -> dict[str, Int[np.ndarray, " n"]]:
    """Classes predicted for each variant by one logistic regression, fitted on standardised original outputs."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(bank.double().numpy())
    with warnings.catch_warnings():
        # If classes are separable, weights grow without bound, but predictions stop changing early.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(C=0.1, max_iter=500).fit(scaler.transform(bank.double().numpy()), labels)
    return {v: np.asarray(probe.predict(scaler.transform(each.double().numpy()))) for v, each in y.items()}


def zero_shot(images: Float[Tensor, "n d"], texts: Float[Tensor, "n_classes d"], labels: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Whether the nearest text by cosine is the image's class; labelled images only."""
    normal = torch.nn.functional.normalize
    said = (normal(images, dim=1) @ normal(texts, dim=1).T).argmax(1).numpy()
    return np.asarray(said[labels >= 0] == labels[labels >= 0])


def _accuracies(
    y: Mapping[str, Tensor], bank: Tensor, test: np.ndarray, train: np.ndarray, cfg: FidelityConfig
) -> dict[str, dict[str, Any]]:
    labelled, learnt = test >= 0, train >= 0
    true, bank, known = test[labelled], bank[torch.from_numpy(learnt)], train[learnt]
    y = {v: each[torch.from_numpy(labelled)] for v, each in y.items()}
    fitted = linear(bank, known, y)
    return {
        f"{cfg.k}-NN accuracy": row_of_hits({v: knn(bank, known, y[v], cfg.k) == true for v in VARIANTS}, cfg.seed),
        "linear accuracy": row_of_hits({v: fitted[v] == true for v in VARIANTS}, cfg.seed),
    }


def chosen(store: ActivationStore, checkpoint: Checkpoint, site: Site, cfg: FidelityConfig) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the held-out and training images to use, ascending.

    Raises:
        CheckpointError: the SAE was trained on all images.
    """
    read = checkpoint.read
    held = heldout_mask(store.n_images, read.heldout, read.split_seed)
    usable = store.done(site) == RECORDED
    rng = np.random.RandomState(cfg.seed)
    test, train = ((usable & side).nonzero()[0] for side in (held, ~held))
    if len(test) == 0:
        raise CheckpointError(f"no held-out image to measure on (read.heldout is {read.heldout:g}); train with read.heldout above 0.")
    return np.sort(rng.permutation(test)[: cfg.n_test]), np.sort(rng.permutation(train)[: cfg.n_train])


class _Batches:
    """`Downstream`s of image batches: from the recorded activations, or from the images if a data set is given."""

    def __init__(self, model: VisionModel, store: ActivationStore, site: Site, dataset: ImageDataset | None, size: int) -> None:
        self.model, self.store, self.site, self.dataset, self.size = model, store, site, dataset, size
        self._blank = None if dataset else Downstream.blank(model, site)

    def __call__(self, images: np.ndarray) -> Iterator[Downstream]:
        for start in range(0, len(images), self.size):
            yield self.one(images[start : start + self.size])

    def one(self, images: np.ndarray) -> Downstream:
        if self._blank is None:
            assert self.dataset is not None
            return Downstream.of(self.model, self.pixels(self.dataset, images), self.site)
        parts: list[Literal["prefix", "patches"]] = ["prefix", "patches"] if self.store.grid.n_prefix else ["patches"]
        read = [torch.from_numpy(np.asarray(self.store.read(self.site, images, part))).float() for part in parts]
        return self._blank.on(torch.cat(read, 1).to(self.model.device))

    def pixels(self, dataset: ImageDataset, images: np.ndarray) -> Tensor:
        return torch.stack([self.model.transform(dataset[int(i)].image) for i in images]).to(self.model.device)


def _check_close(cx: TaskContext, batches: _Batches, image: int) -> None:
    """Check, if the images are available, that running from recorded activations gives the same output as running on the image.

    Raises:
        ModelError: it does not.
    """
    try:
        dataset = cx.dataset()
    except SaevError as error:
        cx.say(f"The images are not available, so the recorded activations are not checked against them ({error})")
        return
    last = batches.model.site(-1)
    numbers = np.asarray([image])
    here = batches.one(numbers).record([last])[last]
    there = batches.model.record(batches.pixels(dataset, numbers), [last])[last]
    if float((here - there).norm() / there.norm().clamp_min(1e-12)) > CLOSE:
        raise ModelError(
            f"{batches.site}: running on from the recorded activations of image {image} does not reproduce its output (later blocks read "
            "more than one site, or this is not the recorded model); measure with --from-images."
        )


def _site(cfg: FidelityConfig, checkpoint: Checkpoint) -> Site:
    selection = checkpoint.selection
    if selection.layers == "all" and not cfg.site:
        raise StoreError(f"the SAE was trained on several sites ({selection}); choose where to splice, as in --site {selection.stream}.3.")
    site = Site.parse(cfg.site or checkpoint.site)
    if selection.layers != "all" and not selection.includes(site):
        raise StoreError(f"--site {site}: the SAE reads {selection}; omit --site.")
    return site


def _outputs(cx: TaskContext, batches: _Batches, images: np.ndarray, pools: Sequence[Pool]) -> dict[Pool, Tensor]:
    """Outputs of unedited images."""
    found: dict[Pool, list[Tensor]] = {pool: [] for pool in pools}
    with cx.track("learn", len(images), "images") as meter:
        for downstream in batches(images):
            _pool(downstream, found)
            meter.update(len(downstream.tokens))
    return {pool: torch.cat(parts) for pool, parts in found.items()}


def _spliced_outputs(
    cx: TaskContext, checkpoint: Checkpoint, batches: _Batches, images: np.ndarray, pools: Sequence[Pool], embed: bool
) -> tuple[dict[Pool, dict[str, Tensor]], dict[str, Tensor]]:
    """Outputs of every variant, and with `embed` their embeddings in the text space."""
    model, read = batches.model, checkpoint.read
    average = (batches.store.norm(batches.site, read.tokens) if read.layer == "all" else checkpoint.norm).mean
    found: dict[str, dict[Pool, list[Tensor]]] = {variant: {pool: [] for pool in pools} for variant in VARIANTS}
    embedded: dict[str, list[Tensor]] = {variant: [] for variant in VARIANTS}
    with cx.track("splice", len(images), "images") as meter:
        for downstream in batches(images):
            for variant in VARIANTS:
                there = downstream.on(spliced(downstream.tokens, checkpoint, model.grid.n_prefix, variant, average))
                _pool(there, found[variant])
                if embed:
                    assert isinstance(model, TextSpace)
                    embedded[variant].append(there(ask=model.encode_images).float().cpu())
            meter.update(len(downstream.tokens))
    outputs = {pool: {variant: torch.cat(found[variant][pool]) for variant in VARIANTS} for pool in pools}
    return outputs, {variant: torch.cat(parts) for variant, parts in embedded.items() if parts}


def _pool(downstream: Downstream, into: Mapping[Pool, list[Tensor]]) -> None:
    """Append a batch's outputs: the last block's first token, or the mean over its patches."""
    last = downstream.model.site(-1)
    tokens = downstream.record([last])[last].float().cpu()
    for pool, parts in into.items():
        parts.append(tokens[:, 0] if pool == "cls" else tokens[:, downstream.model.grid.n_prefix :].mean(1))


def _texts(cx: TaskContext, model: VisionModel, labels: np.ndarray, cfg: FidelityConfig) -> tuple[Tensor | None, str]:
    """Embeddings of the class names, or the reason why there are none."""
    if not isinstance(model, TextSpace):
        return None, "the model has no text space"
    if not (labels >= 0).any():
        return None, "the images have no labels"
    try:
        names: Sequence[str] | None = cx.dataset().classes
        if names is None or len(names) <= labels.max():
            return None, "the data set does not name its classes"
        return model.encode_text([cfg.prompt.format(name) for name in names]).float().cpu(), ""
    except SaevError as error:
        return None, str(error)


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([HEADER, *rows])
    replace_file(path, text.getvalue().encode())


__all__ = ["HEADER", "VARIANTS", "Fidelity", "FidelityConfig", "errors", "knn", "linear", "recovered", "spliced", "zero_shot"]

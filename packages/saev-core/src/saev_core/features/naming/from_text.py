"""Names from a vocabulary, for models with a text encoder: text embeddings are compared with each feature in the shared space.

Everything is compared after centring: text by the vocabulary's mean, images by the data set's, because the two are separate clusters
in CLIP's space. A feature is embedded in two ways, and the best names of both compete on training images:
- its decoder direction: the model head's output for an average token with the feature added, minus its output for the average
  token alone. Exact at the last block except for the head's normalisation; at earlier blocks, the blocks in between are skipped;
- its top images: the mean of their embeddings, weighted by how strongly they fire it.

Sources: Bhalla et al. 2024 (SpLiCE, https://arxiv.org/abs/2402.10376) for the centring; Rao et al. 2024 (DN-CBM,
https://arxiv.org/abs/2407.14499) for decoder directions against text; Oikarinen and Weng 2023 (CLIP-Dissect,
https://arxiv.org/abs/2204.10965) for using images to describe units outside the shared space.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.sparse import csc_array, vstack
from torch import Tensor

from saev_core.activations.recording.load_images import load
from saev_core.errors import ModelError
from saev_core.features.naming.auroc import auroc
from saev_core.features.naming.firing import Division, division_of, fires_from, firing
from saev_core.features.naming.from_concepts import chosen
from saev_core.features.naming.names import Names
from saev_core.models.base import TextSpace, VisionModel
from saev_core.support.progress import Track, silent

if TYPE_CHECKING:
    from saev_core.activations.store.store import ActivationStore
    from saev_core.config.stages import NamesConfig
    from saev_core.data.dataset import ImageDataset
    from saev_core.features.index import FeatureIndex
    from saev_core.features.naming.vocabulary import Vocabulary
    from saev_core.sae.checkpoint import Checkpoint

log = logging.getLogger(__name__)

PROMPT = "a photo of {}"
"""Prompt for a concept: text encoders are trained on captions, not on single words."""
N_CANDIDATES = 8
"""Candidate concepts from each of the two embeddings."""
N_TOP = 16
"""Number of strongest training images whose mean represents a feature."""
_BLOCK = 2048
_TEXTS = 256
_IMAGES = 32


def names_from_text(
    checkpoint: Checkpoint,
    store: ActivationStore,
    index: FeatureIndex,
    model: VisionModel,
    dataset: ImageDataset,
    vocabulary: Vocabulary,
    cfg: NamesConfig,
    *,
    track: Track = silent,
) -> Names:
    """Names from a vocabulary. `cfg.n_images` images are run through the model: a third of them held out; of the rest, half
    are drawn at random and half are features' top images.

    Raises:
        ModelError: the model has no text encoder.
        CheckpointError: no image is held out.
    """
    if not isinstance(model, TextSpace):
        raise ModelError(f"{type(model).__name__} has no text encoder to name features with; use clip or siglip, or names from labels.")
    parts = division_of(checkpoint, store, cfg.n_images)
    wanted, drawn = with_top_images(parts, index)
    train, on_train = _embed(model, dataset, wanted, _IMAGES, track)
    heldout, on_heldout = _embed(model, dataset, parts.heldout, _IMAGES, track)
    if not len(train) or not len(heldout):
        raise ModelError("none of the images used for naming can be read; has the data set moved since recording?")
    # The data set's mean is estimated on random images, not on images that features selected.
    random = np.isin(train, drawn)
    mean = on_train[random if random.any() else slice(None)].mean(0)
    on_train, on_heldout = centred(on_train, mean), centred(on_heldout, mean)
    text = embed_text(model, vocabulary.concepts, track)
    least = fires_from(index, cfg.fires)
    peaks, peaks_heldout = (_peaks(checkpoint, store, images, least, track) for images in (train, heldout))
    sides = {"decoder direction": of_directions(checkpoint, model, index), "top images": of_top_images(peaks, on_train)}
    near = {side: nearest(x, text, N_CANDIDATES) for side, x in sides.items() if x is not None}
    candidates = np.concatenate(list(near.values()), axis=1)
    best, runner_up = two_best(candidates, auroc(text @ on_train.T, peaks, candidates))
    score = auroc(text @ on_heldout.T, peaks_heldout, best[:, None])[:, 0]
    n_positive = np.diff(peaks_heldout.indptr)
    few = (n_positive < cfg.n_positive) | (len(heldout) - n_positive < cfg.n_positive) | (best < 0)
    alive = (np.diff(peaks.indptr) > 0) | (n_positive > 0)
    names = chosen(vocabulary.concepts, best, runner_up, score, n_positive, few, cfg.threshold)
    put_forward = {side: sum(bool((found[f] == best[f]).any()) for f in names) for side, found in near.items()}
    return Names(
        "text",
        checkpoint.fingerprint,
        cfg.threshold,
        cfg.n_positive,
        names,
        n_features=checkpoint.sae.d_sae,
        n_alive=int(alive.sum()),
        n_few=int((alive & few).sum()),
        n_train=len(train),
        n_heldout=len(heldout),
        vocabulary=vocabulary.sha256,
        about={"unit": "image", "n_concepts": len(vocabulary), "prompt": PROMPT, "put_forward": put_forward},
    )


def with_top_images(parts: Division, index: FeatureIndex) -> tuple[Int[np.ndarray, " n_train"], Int[np.ndarray, " n_random"]]:
    """Training images, half of them drawn at random, the others top images of features: the strongest of every feature first, then
    the second, and so on; and the drawn ones. Never includes images held out from training.
    """
    n_random = len(parts.train) - len(parts.train) // 2
    drawn = np.sort(np.random.Generator(np.random.PCG64(1)).permutation(parts.train)[:n_random])
    ranked = index.top_index.T.reshape(-1)  # rank by rank
    free = parts.pool.copy()
    free[drawn] = False
    ranked = ranked[(ranked >= 0) & free[ranked]]
    _, first = np.unique(ranked, return_index=True)
    top = ranked[np.sort(first)][: len(parts.train) - n_random]
    rest = np.setdiff1d(parts.train, np.concatenate([drawn, top]))[: len(parts.train) - n_random - len(top)]
    return np.sort(np.concatenate([drawn, top, rest])), drawn


@torch.no_grad()
def _embed(
    model: TextSpace, dataset: ImageDataset, images: Int[np.ndarray, " n"], batch: int, track: Track
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, "m d_text"]]:
    """Numbers and unit embeddings of the readable images."""
    assert isinstance(model, VisionModel)
    found: list[tuple[int, Tensor]] = []
    parts: list[Tensor] = []

    def flush() -> None:
        if found:
            pixels = torch.stack([pixels for _, pixels in found]).to(model.device)
            parts.append(F.normalize(model.encode_images(pixels).float(), dim=1).cpu())
            numbers.extend(number for number, _ in found)
            found.clear()

    numbers: list[int] = []
    with track("embed", len(images), "images") as meter:
        for image in load(dataset, model, ((int(i), int(i) + 1) for i in images)):
            meter.update(1)
            if image.pixels is None:
                log.warning("names: skipping image %d: %s", image.index, image.bad)
                continue
            found.append((image.index, image.pixels))
            if len(found) == batch:
                flush()
        flush()
    return np.array(numbers, np.int64), torch.cat(parts).numpy() if parts else np.empty((0, 0), np.float32)


@torch.no_grad()
def embed_text(model: TextSpace, concepts: Sequence[str], track: Track = silent) -> Float[np.ndarray, "n_concepts d_text"]:
    """Unit embeddings of concepts, centred and normalised again."""
    parts: list[Tensor] = []
    with track("embed", len(concepts), "texts") as meter:
        for start in range(0, len(concepts), _TEXTS):
            some = [PROMPT.format(concept) for concept in concepts[start : start + _TEXTS]]
            parts.append(F.normalize(model.encode_text(some).float(), dim=1).cpu())
            meter.update(len(some))
    text = torch.cat(parts).numpy()
    return centred(text, text.mean(0))


def centred(x: Float[np.ndarray, "n d"], mean: Float[np.ndarray, " d"]) -> Float[np.ndarray, "n d"]:
    """`x` minus `mean`, normalised; a vector equal to the mean stays zero."""
    x = x - mean
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), np.float32)


def _peaks(
    checkpoint: Checkpoint, store: ActivationStore, images: Int[np.ndarray, " n"], least: Float[np.ndarray, " d_sae"], track: Track
) -> csc_array:
    """Each feature's largest value on each image that fires it, `[n, d_sae]`."""
    return csc_array(vstack([fires for _, fires in firing(checkpoint, store, images, least, per_patch=False, track=track)]))


def of_top_images(peaks: csc_array, images: Float[np.ndarray, "n d_text"]) -> Float[np.ndarray, "d_sae d_text"]:
    """The mean embedding of the `N_TOP` images that fire each feature most, weighted by its value, normalised."""
    out = np.zeros((peaks.shape[1], images.shape[1]), np.float32)
    for feature in range(peaks.shape[1]):
        mine = slice(*peaks.indptr[feature : feature + 2])
        rows, values = peaks.indices[mine], peaks.data[mine]
        if len(rows) > N_TOP:
            strongest = np.argpartition(-values, N_TOP - 1)[:N_TOP]
            rows, values = rows[strongest], values[strongest]
        out[feature] = values @ images[rows]
    return centred(out, np.zeros(1, np.float32))


@torch.no_grad()
def of_directions(checkpoint: Checkpoint, model: TextSpace, index: FeatureIndex) -> Float[np.ndarray, "d_sae d_text"] | None:
    """Each feature's decoder direction in the text space: `project(mean + v d) - project(mean)`, both normalised, `v` the mean
    of the feature's values. None if the SAE does not read one block's residual stream, writes to another site, or its vectors
    do not enter the model's head.
    """
    sae, norm = checkpoint.sae, checkpoint.norm
    if (
        not isinstance(checkpoint.read.layer, int)
        or checkpoint.read.stream != "resid"
        or sae.d_out != sae.d_in
        or not isinstance(norm.scale, float)
    ):
        return None
    mean = norm.mean.float()
    try:
        base = F.normalize(model.project(mean[None]).float(), dim=1)
    except ModelError as error:
        log.info("names: not using decoder directions: %s", error)
        return None
    out = np.zeros((sae.d_sae, base.shape[1]), np.float32)
    typical = torch.from_numpy(np.nan_to_num(index.mean)).float().to(mean.device) / norm.scale
    for start in range(0, sae.d_sae, _BLOCK):
        some = slice(start, start + _BLOCK)
        token = mean + typical[some, None] * sae.W_dec[some]
        out[some] = (F.normalize(model.project(token).float(), dim=1) - base).cpu().numpy()
    return centred(out, np.zeros(1, np.float32))


def nearest(side: Float[np.ndarray, "d_sae d_text"], text: Float[np.ndarray, "n d_text"], n: int) -> Int[np.ndarray, "d_sae n"]:
    """The `n` concepts with the largest cosine to each feature, best first; -1 if a feature has no direction."""
    n = min(n, len(text))
    out = np.full((len(side), n), -1, np.int64)
    for start in range(0, len(side), _BLOCK):
        some = side[start : start + _BLOCK]
        cosine = some @ text.T
        best = np.argpartition(-cosine, n - 1, axis=1)[:, :n] if n < len(text) else np.tile(np.arange(n), (len(some), 1))
        order = np.argsort(-np.take_along_axis(cosine, best, 1), axis=1, kind="stable")
        known = np.abs(some).sum(1, keepdims=True) > 0
        out[start : start + _BLOCK] = np.where(known, np.take_along_axis(best, order, 1), -1)
    return out


def two_best(
    candidates: Int[np.ndarray, "d_sae m"], score: Float[np.ndarray, "d_sae m"]
) -> tuple[Int[np.ndarray, " d_sae"], Int[np.ndarray, " d_sae"]]:
    """The candidates with the best and second-best score; ties go to the first; -1 if there is none."""
    score = np.where(candidates >= 0, score, -1)
    rows = np.arange(len(candidates))
    best = candidates[rows, score.argmax(1)]
    others = np.where(candidates == best[:, None], -1, score)
    return best, np.where(others.max(1) >= 0, candidates[rows, others.argmax(1)], -1)

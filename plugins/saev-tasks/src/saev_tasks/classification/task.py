"""`saev task classification`: linear probes on whole images, and the effect of feature edits on their predictions."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saev_core import Box, Probe, Task, TaskContext, verb
from saev_core.errors import ProbeError, UsageError
from saev_core.tasks.fit_probes import ProbeSetting, Scaling, train_test_indices
from saev_core.tasks.task import plain
from saev_tasks.classification import report
from saev_tasks.classification.bench import ImageBench
from saev_tasks.classification.control import control_images
from saev_tasks.classification.data import LabelData, LabelPart, load_classifier
from saev_tasks.classification.options import ControlConfig, ManipulateConfig, ProposeConfig, TrainConfig
from saev_tasks.classification.propose import Proposed, propose
from saev_tasks.classification.train import Candidate, accuracy_and_loss, best_of, by_adamw, by_logistic
from saev_tasks.shared import figures
from saev_tasks.shared.intervals import wilson
from saev_tasks.shared.pooling import Pool, image_vectors, parse_tokens
from saev_tasks.shared.readout import Readout
from saev_tasks.shared.results import keep, write_csv
from saev_tasks.shared.sites import site_of, told_of

_PICTURE_PX = 288


class Classification(Task):
    """Linear probes on whole images, features proposed for each class, and the control experiment."""

    @verb
    def train(self, cx: TaskContext, cfg: TrainConfig) -> dict[str, Any]:
        """Train a sweep of linear classifiers in one pass, and a logistic regression; keep the best."""
        store, site = cx.store(), site_of(cx, cfg.site)
        pool = _pool_of(cx, cfg.tokens).check(store)
        card: dict[str, Any] = cfg.model_dump(
            mode="json", include={"val_share", "tune_share", "val", "val_dataset", "seed", "epochs", "batch_size"}
        )
        data = LabelData.of(cx, site, card)
        n_classes = len(data.classes)
        fit, tune = _tuned(data.train, cfg.tune_share, cfg.seed)
        with tempfile.TemporaryDirectory(prefix=".aside-", dir=cx.folder()) as aside:
            x, spare, held = (image_vectors(part.store, site, pool, part.images, Path(aside), cx.track) for part in (fit, tune, data.val))
            scaling = Scaling.of(torch.split(x, 4096))
            found: list[Candidate] = []
            if cfg.solver != "logistic":
                points = [ProbeSetting(lr, decay) for lr in cfg.lr for decay in cfg.weight_decay]
                size = cfg.batch_size or min(512, -(-len(x) // 16))
                found += by_adamw(
                    x, fit.targets, n_classes, points, epochs=cfg.epochs, batch_size=size, seed=cfg.seed, scaling=scaling,
                    device=cx.device, track=cx.track,
                )  # fmt: skip
            if cfg.solver != "adamw":
                found += by_logistic(x, fit.targets, n_classes, cfg.c, scaling=scaling, track=cx.track)
            fitted, tuned, judged = (accuracy_and_loss(found, x, part.targets) for x, part in ((x, fit), (spare, tune), (held, data.val)))
            best = best_of(tuned)
            classes = report.per_class(found[best], held, data.val, data.classes)
        rows = [
            {
                **{key: getattr(one, key) for key in ("solver", "lr", "weight_decay", "c", "converged")},
                **{f"{part}_accuracy": told[i][0] for part, told in (("train", fitted), ("tune", tuned), ("val", judged))},
                **{f"{part}_loss": told[i][1] for part, told in (("train", fitted), ("tune", tuned), ("val", judged))},
                "best": i == best,
            }
            for i, one in enumerate(found)
        ]
        n_val, accuracy = len(data.val.images), judged[best][0]
        card |= {key: rows[best][key] for key in ("solver", "lr", "weight_decay", "c")}
        card |= {"accuracy": accuracy, "accuracy_interval": wilson(accuracy * n_val, n_val)}
        card |= {
            "n_train": len(fit.images),
            "n_tune": len(tune.images),
            "n_val": n_val,
            "train_accuracy": fitted[best][0],
            "tune_accuracy": tuned[best][0],
        }
        probe = Probe(found[best].weight, found[best].bias, data.classes, str(site), str(pool), told_of(store), plain(card))
        folder = probe.save(cx.folder("probe"))
        write_csv(cx.folder("results.csv"), rows)
        figures.sweep(rows, rows[best], "val_accuracy", "validation accuracy", cx.folder("hparam-sweeps.png"))
        cx.table(report.ranked(rows), ["solver", "setting", "train", "tune", "validation"])
        cx.say(f"all {len(rows)} in {cx.folder('results.csv')}")
        low, high = card["accuracy_interval"]
        cx.say(f"accuracy {accuracy:.4f} ({low:.3f} to {high:.3f}) on {n_val} validation images: {pool} of {site}, {n_classes} classes")
        told = {"site": str(site), "tokens": str(pool), "best": rows[best], "points": rows, "classes": classes}
        return keep(cx, "train", {**told, "card": card, "probe": folder})

    @verb
    def manipulate(self, cx: TaskContext, cfg: ManipulateConfig) -> dict[str, Any]:
        """Edit features on one image: the probe's predictions before and after, as JSON and a figure."""
        probe, data = load_classifier(cx)
        store = cx.store()
        if cfg.image >= store.n_images:
            raise UsageError(f"--image {cfg.image}: the store holds images 0 to {store.n_images - 1}.")
        if not cfg.edit:
            raise UsageError("--edit names no feature; use --edit FEATURE=STRENGTH, such as --edit 302=0.")
        readout = _readout(cx, probe, LabelPart(store, np.array([cfg.image]), np.array([0])), cfg.sae, cfg.prefix)
        if store.done(readout.site)[cfg.image] != 1:
            raise UsageError(f"--image {cfg.image} was not recorded: it could not be read.")
        peak = cx.index(cfg.sae).max if cfg.mode in ("add", "set") else np.ones(readout.checkpoint.sae.d_sae)
        edits = [readout.edit(peak, feature, strength, cfg.mode, cfg.where) for feature, strength in cfg.edit.items()]
        logits, changed = readout.under(cfg.image, edits)
        before, after = (one.softmax(-1).numpy() for one in (logits, changed))
        shown = list(dict.fromkeys([*np.argsort(-before)[: cfg.top].tolist(), *np.argsort(-after)[: cfg.top].tolist()]))
        names, label = probe.classes, int(store.labels[cfg.image])
        truth = names[label] if label >= 0 else ""
        rows = [{"class": names[c], "number": c, "before": float(before[c]), "after": float(after[c])} for c in shown]
        what = figures.edits_title(cfg.edit, cfg.mode)
        title = f"image {cfg.image}: {what}" + (f" on {len(cfg.where)} patches" if cfg.where else "")
        scale = max(1, _PICTURE_PX // store.grid.height_px)
        picture = figures.cropped(cx.dataset()[cfg.image].image, Box(*store.crops[cfg.image].tolist()), store.grid, scale)
        marked = [tuple(scale * edge for edge in store.grid.box(token)) for token in cfg.where]
        path = figures.before_after(
            picture, [names[c] for c in shown], before[shown], after[shown], title, cx.folder(f"manipulate-{cfg.image}.png"),
            truth=truth, marked=marked,  # type: ignore[arg-type]
        )  # fmt: skip
        cx.table([[row["class"], f"{row['before']:.3f}", f"{row['after']:.3f}"] for row in rows], ["class", "before", "after"])
        cx.say(f"{names[int(before.argmax())]} before, {names[int(after.argmax())]} after" + (f"; it is {truth}" if truth else ""))
        cx.say(str(path))
        told = {"image": cfg.image, "name": cx.dataset().name(cfg.image), "label": truth or None, "mode": cfg.mode, "where": cfg.where}
        said = {
            "before": names[int(before.argmax())],
            "after": names[int(after.argmax())],
            "validation": bool(cfg.image in data.val.images),
        }
        return {**told, "edits": cfg.edit, "said": said, "classes": rows, "before": before, "after": after, "figure": path}

    @verb
    def propose(self, cx: TaskContext, cfg: ProposeConfig) -> dict[str, Any]:
        """Propose the features that represent each class, from training images only."""
        probe, data = load_classifier(cx)
        part = data.train.some(cfg.n_images, cfg.seed)
        bench = _bench(cx, probe, part, cfg.sae, cfg.prefix)
        by = _by(cfg.by, bench)
        found = _proposed(cx, bench, data, by, cfg.n)
        classes = {data.classes[c]: [asdict(one) for one in some] for c, some in found.items()}
        cx.table(
            [[name, ", ".join(map(report.fires, some[:5]))] for name, some in classes.items()],
            ["class", "features (fires on the class/on others)"],
        )
        facts = {"sae": cx.sae_name(cfg.sae), "site": probe.site, "by": by, "n_images": len(part.images)}
        return keep(cx, "propose", {**facts, "classes": classes})

    @verb
    def control(self, cx: TaskContext, cfg: ControlConfig) -> dict[str, Any]:
        """Control experiment: suppress each class's features and measure what it and all others lose, against random baselines."""
        probe, data = load_classifier(cx)
        wanted = {_number(one, data.classes) for one in cfg.classes} or set(range(len(data.classes)))
        tried = _bench(cx, probe, data.train.some(cfg.n_train, cfg.seed), cfg.sae, cfg.prefix)
        by = _by(cfg.by, tried)
        found = {c: [one.feature for one in some] for c, some in _proposed(cx, tried, data, by, max(cfg.sizes)).items() if c in wanted}
        if none := [data.classes[c] for c in sorted(wanted) if not found.get(c)]:
            cx.say(f"skipped, with no proposed feature or no training image: {', '.join(none)}")
        part = data.val.some(cfg.n_val, cfg.seed)
        bench = _bench(cx, probe, part, cfg.sae, cfg.prefix)
        rows = control_images(
            tried, bench, found, data.classes, sizes=cfg.sizes, strengths=cfg.strengths, target=cfg.target, harm=cfg.harm,
            draws=cfg.draws, seed=cfg.seed, track=cx.track,
        )  # fmt: skip
        if not rows:
            raise ProbeError(
                "no class has both proposed features and correctly classified validation images; train a better probe or SAE first."
            )
        write_csv(cx.folder("control.csv"), [report.flat(row) for row in rows])
        figures.control_bars(rows, "the class's images\nflipped, %", "others' images\nlost, %", cx.folder("control.png"))
        cx.table([report.told(row) for row in rows], report.CONTROL)
        n_pass = sum(row.passes for row in rows)
        cx.say(
            f"{n_pass} of {len(rows)} classes: at least 80 % flipped and others lose at most 5 %, on {len(part.images)} validation images"
        )
        facts: dict[str, Any] = {
            "sae": cx.sae_name(cfg.sae),
            "site": probe.site,
            "sae_site": str(tried.readout.site),
            "tokens": probe.tokens,
            "by": by,
        }
        counts = {"n_train": len(tried.images), "n_val": len(part.images), "n_pass": n_pass, "n_classes": len(rows)}
        facts |= {"accuracy": float(bench.right.mean())}
        return keep(cx, "control", {**facts, **counts, "options": cfg, "rows": [row.to_json() for row in rows]})


def _pool_of(cx: TaskContext, text: str) -> Pool:
    """Parse `--tokens`; see `TrainConfig.tokens`."""
    if text != "auto":
        return parse_tokens(text)
    if cx.run.best:
        return parse_tokens("cls" if cx.checkpoint().read.tokens == "cls" else "mean")
    return parse_tokens("cls" if cx.store().meta.n_prefix else "mean")


def _tuned(train: LabelPart, share: float, seed: int) -> tuple[LabelPart, LabelPart]:
    """Split the training images into those to fit on and those to choose the best setting on; all for both if no class has two."""
    if np.bincount(train.labels).max() < 2:
        return train, train
    fit, tune = (
        LabelPart(train.store, train.images[places], train.labels[places]) for places in train_test_indices(train.labels, share, seed + 1)
    )
    return fit, tune


def _readout(cx: TaskContext, probe: Probe, part: LabelPart, sae: str, prefix: bool) -> Readout:
    checkpoint = cx.checkpoint(sae)
    checkpoint.check(part.store, same_data=False)
    return Readout(probe, checkpoint, part.store, cx.model, prefix)


def _bench(cx: TaskContext, probe: Probe, part: LabelPart, sae: str, prefix: bool) -> ImageBench:
    return ImageBench(_readout(cx, probe, part, sae, prefix), part.images, part.labels, cx.track)


def _by(by: str, bench: ImageBench) -> str:
    return by if by != "auto" else "attribution" if bench.readout.linear else "difference"


def _proposed(cx: TaskContext, bench: ImageBench, data: LabelData, by: str, n: int) -> dict[int, list[Proposed]]:
    """Proposals for each class, also written to `proposal.json`."""
    from saev_core.support.files import write_json

    found = propose(bench, len(data.classes), n, by)
    told = {
        "by": by,
        "n_images": len(bench.images),
        "classes": {data.classes[c]: [asdict(one) for one in some] for c, some in found.items()},
    }
    write_json(cx.folder("proposal.json"), plain(told))
    return found


def _number(text: str, names: list[str]) -> int:
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise UsageError(f"--classes {text}: no such class; there are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}.")

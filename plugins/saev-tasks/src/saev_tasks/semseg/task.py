"""`saev task semseg`: linear segmentation probes, and the effect of suppressing features on their predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saev_core import ActivationStore, Box, Probe, Site, Task, TaskContext, verb
from saev_core.errors import DatasetError, ProbeError, UsageError
from saev_core.tasks.fit_probes import ProbeSetting
from saev_core.tasks.task import plain
from saev_tasks.semseg import panels, report
from saev_tasks.semseg.bench import PatchBench
from saev_tasks.semseg.control import Sight, control_pixels
from saev_tasks.semseg.data import MaskData, MaskPart, load_segmenter
from saev_tasks.semseg.options import ControlConfig, ManipulateConfig, ProposeConfig, TrainConfig, ValidateConfig
from saev_tasks.semseg.propose import Proposed, propose
from saev_tasks.semseg.scores import predict
from saev_tasks.semseg.train import ceilings, measure, train_probes
from saev_tasks.shared import figures
from saev_tasks.shared.patch_vectors import listed
from saev_tasks.shared.readout import Readout
from saev_tasks.shared.results import keep, write_csv
from saev_tasks.shared.sites import site_of, told_of

MAX_TUNE_IMAGES = 500
"""Maximum number of images for comparing sweep settings."""


class SemSeg(Task):
    """Segmentation probes on patches, features proposed for each class, and the control experiment."""

    @verb
    def train(self, cx: TaskContext, cfg: TrainConfig) -> dict[str, Any]:
        """Train a sweep of linear segmentation probes in one pass; keep the best."""
        site = site_of(cx, cfg.site)
        card: dict[str, Any] = cfg.model_dump(mode="json", exclude={"lr", "weight_decay", "site"})
        data = MaskData.of(cx, site, card)
        points = [ProbeSetting(lr, decay) for lr in cfg.lr for decay in cfg.weight_decay]
        order = np.random.RandomState((cfg.seed + 1) % 2**32).permutation(data.train.images)
        n_tuned = min(max(1, round(len(order) * cfg.tune_share)), len(order) - 1)
        if n_tuned < 1:
            raise ProbeError(f"{len(order)} training image: too few to train on and to choose a learning rate on; record more images.")
        tune, fit = np.sort(order[: min(n_tuned, MAX_TUNE_IMAGES)]), np.sort(order[n_tuned:])
        truth = data.train.truth
        fitted = train_probes(
            truth, site, fit, points, loss=cfg.loss, n_drawn=cfg.pixels or -(-truth.grid.n_patches // 4), epochs=cfg.epochs,
            batch_size=cfg.batch_size, seed=cfg.seed, device=cx.device, track=cx.track, say=cx.say,
        )  # fmt: skip
        heads = [(one.weight, one.bias) for one in fitted]
        # By the level it was trained on: pixels or patches.
        tuned = measure(truth, site, tune, heads, patches=cfg.loss == "patches", track=cx.track)
        rows = [
            {"lr": one.point.lr, "weight_decay": one.point.weight_decay, "loss": one.curve[-1], **report.scores(counts)}
            for one, counts in zip(fitted, tuned, strict=True)
        ]
        best = max(range(len(rows)), key=lambda i: (np.nan_to_num(rows[i]["miou"], nan=-1), -i))
        val = _on(data.val, site, heads[best], cx)
        card |= {"solver": "adamw", "lr": rows[best]["lr"], "weight_decay": rows[best]["weight_decay"], "tuned": plain(rows[best])}
        card |= {"n_train": len(fit), "n_tune": len(tune), "n_val": len(data.val.images), "val_scores": plain(val)}
        weight, bias = (part.detach().cpu() for part in heads[best])
        probe = Probe(weight, bias, data.classes.names, str(site), "patches", told_of(cx.store()), card)
        folder = probe.save(cx.folder("probe"))
        write_csv(cx.folder("results.csv"), rows)
        panels.sweep(rows, rows[best], cx.folder("hparam-sweeps.png"))
        cx.table([[*(f"{value:.4g}" for value in row.values())] for row in rows], list(rows[0]))
        cx.say(f"best: lr {rows[best]['lr']:g}, weight decay {rows[best]['weight_decay']:g}, chosen on {len(tune)} training images")
        cx.say(report.line(val, len(data.val.images)))
        return keep(cx, "train", {"site": str(site), "best": rows[best], "val": val, "points": rows, "probe": folder, "card": card})

    @verb
    def validate(self, cx: TaskContext, cfg: ValidateConfig) -> dict[str, Any]:
        """Evaluate the probe on validation images: IoU of each class with intervals, an oracle's ceiling, panels."""
        probe, data = load_segmenter(cx)
        classes, site, part = data.classes, Site.parse(probe.site), data.val.some(cfg.n_images, 0)
        head = (probe.weight, probe.bias)
        (pixels,) = measure(part.truth, site, part.images, [head], track=cx.track)
        patches = measure(part.truth, site, part.images, [head], patches=True)[0] if part.truth.store.mask is not None else None
        oracle = ceilings(part.truth, part.images, cx.track)
        bounds = report.class_intervals(pixels)
        rows = report.class_rows(pixels, bounds, classes)
        write_csv(cx.folder("classes.csv"), rows)
        panels.class_bars(pixels.iou, bounds, classes, pixels.miou, cx.folder("class-iou.png"))
        if cfg.examples:
            _examples(cx, probe, part.some(cfg.examples, 1), data)
        found = {
            **report.scores(pixels),
            "intervals": pixels.intervals(),
            "n_images": len(part.images),
            "patches": report.scores(patches) if patches else None,
            "ceiling": {name: report.scores(counts) for name, counts in oracle.items()},
            "ignored": sorted(classes.ignored),
            "classes": rows,
        }
        cx.table([[row["class"], f"{row['iou']:.3f}", f"{row['accuracy']:.3f}", row["pixels"]] for row in rows if not row["ignored"]],
                 ["class", "IoU", "accuracy", "pixels"])  # fmt: skip
        cx.say(report.line(found, len(part.images)))
        if patches:
            cx.say(f"on patches, by majority class: mean IoU {patches.miou:.3f}, accuracy {patches.accuracy:.3f}")
        for name, counts in oracle.items():
            cx.say(f"an oracle that knows each patch's {name}: mean IoU {counts.miou:.3f}, pixel accuracy {counts.accuracy:.3f}")
        return keep(cx, "validate", found)

    @verb
    def propose(self, cx: TaskContext, cfg: ProposeConfig) -> dict[str, Any]:
        """Propose the features that represent each class, from training images only."""
        probe, data = load_segmenter(cx)
        part = data.train.some(cfg.n_images, cfg.seed)
        bench = _bench(cx, probe, part, cfg.sae)
        found = _proposed(cx, bench, part, data, cfg.by, cfg.n)
        rows = [{"class": data.classes.names[c], "rank": i, **asdict(one)} for c, some in found.items() for i, one in enumerate(some)]
        write_csv(cx.folder("proposed.csv"), rows)
        cx.table(
            [[row["class"], row["feature"], *(f"{row[key]:.3f}" for key in ("score", "auroc", "f1"))] for row in rows if row["rank"] < 3],
            ["class", "feature", "score", "AUROC", "F1"],
        )
        by = _by(cfg.by, bench)
        told = {data.classes.names[c]: [asdict(one) for one in some] for c, some in found.items()}
        return keep(cx, "propose", {"sae": cx.sae_name(cfg.sae), "by": by, "n_images": len(part.images), "classes": told})

    @verb
    def manipulate(self, cx: TaskContext, cfg: ManipulateConfig) -> dict[str, Any]:
        """Edit features on one image: its prediction before and after, and the pixel count of every class."""
        probe, data = load_segmenter(cx)
        classes, store = data.classes, cx.store()
        if cfg.image >= store.n_images:
            raise UsageError(f"--image {cfg.image}: the store holds images 0 to {store.n_images - 1}.")
        if not cfg.edit:
            raise UsageError("--edit names no feature; use --edit FEATURE=STRENGTH, such as --edit 302=0.")
        readout = _readout(cx, probe, store, cfg.sae)
        peak = cx.index(cfg.sae).max if cfg.mode in ("add", "set") else np.ones(readout.checkpoint.sae.d_sae)
        edits = [readout.edit(peak, feature, strength, cfg.mode, cfg.where) for feature, strength in cfg.edit.items()]
        before, after = readout.under(cfg.image, edits)
        said, now = (predict(logits[None], store.grid, classes)[0].numpy() for logits in (before, after))
        truth = data.train.truth.image(cfg.image)
        example = cx.dataset()[cfg.image]
        n = len(classes)
        was, gone = np.bincount(said.reshape(-1), minlength=n), np.bincount(said[said != now], minlength=n)
        came, shown = np.bincount(now[said != now], minlength=n), np.bincount(np.minimum(truth, n).reshape(-1), minlength=n + 1)
        rows = [
            {"class": classes.names[c], "truth": int(shown[c]), "before": int(was[c]), "after": int(was[c] - gone[c] + came[c]),
             "lost": int(gone[c]), "gained": int(came[c])}
            for c in classes.kept if was[c] or came[c] or shown[c]
        ]  # fmt: skip
        title = f"image {cfg.image}: {figures.edits_title(cfg.edit, cfg.mode)}" + (f" on {len(cfg.where)} patches" if cfg.where else "")
        picture = figures.cropped(example.image, Box(*store.crops[cfg.image].tolist()), store.grid, max(1, 256 // store.grid.height_px))
        path = panels.before_after(picture, truth, said, now, classes, title, cx.folder(f"manipulate-{cfg.image}.png"))
        cx.table([list(row.values()) for row in rows], list(rows[0]) if rows else ())
        cx.say(str(path))
        changed = float((said != now).mean())
        return {
            "image": cfg.image,
            "edits": cfg.edit,
            "mode": cfg.mode,
            "where": list(cfg.where),
            "changed": changed,
            "classes": rows,
            "figure": path,
        }

    @verb
    def control(self, cx: TaskContext, cfg: ControlConfig) -> dict[str, Any]:
        """Control experiment: suppress each class's features and measure what it and all others lose, against random baselines."""
        probe, data = load_segmenter(cx)
        classes = data.classes
        wanted = {_number(one, classes.names) for one in cfg.classes} or set(classes.kept)
        part, val = data.train.some(cfg.n_train, cfg.seed), data.val.some(cfg.n_val, cfg.seed)
        tried = _bench(cx, probe, part, cfg.sae)
        found = {c: [one.feature for one in some] for c, some in _proposed(cx, tried, part, data, cfg.by, max(cfg.sizes)).items()}
        if none := [classes.names[c] for c in sorted(wanted) if not found.get(c)]:
            cx.say(f"skipped, with no proposed feature or no training patch: {listed(none)}")
        bench = _bench(cx, probe, val, cfg.sae)
        truth = val.truth.patches(val.images) if cfg.level == "patches" else val.truth.pixels(val.images, cx.track)
        sight = Sight(bench, truth, classes, cfg.level)
        labels = part.truth.patches(part.images).reshape(-1)
        rows = control_pixels(
            tried, labels, sight, {c: some for c, some in found.items() if c in wanted}, sizes=cfg.sizes, strengths=cfg.strengths,
            target=cfg.target, harm=cfg.harm, draws=cfg.draws, seed=cfg.seed, track=cx.track,
        )  # fmt: skip
        if not rows:
            raise DatasetError(
                "no class has both proposed features and correctly classified validation pixels; train a better probe or SAE first."
            )
        write_csv(cx.folder("control.csv"), [report.flat(row) for row in rows])
        lost = f"right {cfg.level} lost by\nother classes, mean %"
        figures.control_bars(rows, f"flipped {cfg.level}\nof the class, %", lost, cx.folder("control.png"))
        cx.table([report.told(row) for row in rows],
                 report.HEADER)  # fmt: skip
        n_pass = sum(row.passes for row in rows)
        cx.say(
            f"{n_pass} of {len(rows)} classes: at least 80 % flipped and others lose at most 5 %, on {len(val.images)} validation images"
        )
        facts = {"sae": cx.sae_name(cfg.sae), "site": probe.site, "sae_site": str(tried.readout.site), "level": cfg.level,
                 "n_train": len(part.images), "n_val": len(val.images), "n_pass": n_pass, "n_classes": len(rows)}  # fmt: skip
        return keep(cx, "control", {**facts, "options": cfg, "rows": [row.to_json() for row in rows]})


def _on(part: MaskPart, site: Site, head: tuple[Tensor, Tensor], cx: TaskContext) -> dict[str, float]:
    (counts,) = measure(part.truth, site, part.images, [head], track=cx.track)
    return report.scores(counts)


def _readout(cx: TaskContext, probe: Probe, store: ActivationStore, sae: str) -> Readout:
    checkpoint = cx.checkpoint(sae)
    checkpoint.check(store, same_data=False)
    return Readout(probe, checkpoint, store, cx.model)


def _bench(cx: TaskContext, probe: Probe, part: MaskPart, sae: str) -> PatchBench:
    return PatchBench(_readout(cx, probe, part.truth.store, sae), part.images, cx.track)


def _by(by: str, bench: PatchBench) -> str:
    return by if by != "auto" else "attribution" if bench.readout.linear else "difference"


def _proposed(cx: TaskContext, bench: PatchBench, part: MaskPart, data: MaskData, by: str, n: int) -> dict[int, list[Proposed]]:
    labels = part.truth.patches(part.images).reshape(-1)
    found = propose(bench, labels, data.classes, n, _by(by, bench))
    if not found:
        raise DatasetError(
            f"none of {len(part.images)} training images has a patch of a class that is not ignored; propose from more images."
        )
    if missing := [data.classes.names[c] for c in data.classes.kept if c not in found]:
        cx.say(f"no training patch shows {listed(missing)}: no features proposed for it")
    return found


def _number(text: str, names: Sequence[str]) -> int:
    if text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise UsageError(f"--classes {text}: no such class; there are {listed(names)}.")


def _examples(cx: TaskContext, probe: Probe, part: MaskPart, data: MaskData) -> None:
    store, site = part.truth.store, Site.parse(probe.site)
    x = torch.from_numpy(store.read(site, part.images)).float()
    said = predict(probe(x).cpu(), store.grid, data.classes).numpy()
    truth = [part.truth.image(int(i)) for i in part.images]
    scale = max(1, 256 // store.grid.height_px)
    pictures = [
        figures.cropped(part.truth.dataset[int(i)].image, Box(*store.crops[int(i)].tolist()), store.grid, scale) for i in part.images
    ]
    names = [f"image {i}" for i in part.images]
    panels.examples(pictures, [("truth", truth), ("prediction", list(said))], names, data.classes, cx.folder("panels.png"))

"""`saev task semprobe negatives | score | sheets RUN`: do single features detect given concepts?"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from saev_core import Task, TaskContext, load_dataset, verb
from saev_core.errors import DatasetError, RunError
from saev_core.support.files import replace_file
from saev_tasks.semprobe.curated import NEGATIVES, Curated, from_folders, from_labels
from saev_tasks.semprobe.negatives import sample
from saev_tasks.semprobe.options import NegativesConfig, ScoreConfig, SheetsConfig, _Pictures
from saev_tasks.semprobe.scoring import activate, detect, halves
from saev_tasks.semprobe.sheets import draw_sheets


class SemProbe(Task):
    """Features as detectors of curated concepts: sample negatives, score all features, draw contact sheets."""

    @verb
    def negatives(self, cx: TaskContext, cfg: NegativesConfig) -> dict[str, Any]:
        """Sample images that show no concept from a data set into a folder, for review."""
        dataset = load_dataset(cfg.source) if cfg.source else cx.dataset()
        folder = Path(cfg.to).expanduser() if cfg.to else cx.folder(NEGATIVES)
        names = sample(dataset, folder, cfg.n_images, classes=cfg.classes, skip=cfg.skip, seed=cfg.seed, track=cx.track)
        cx.say(f"{len(names)} images in {folder}; review them, and re-run with --skip for those that show a concept.")
        return {"folder": str(folder), "images": names, "seed": cfg.seed}

    @verb
    def score(self, cx: TaskContext, cfg: ScoreConfig) -> dict[str, Any]:
        """Score every feature as a detector of every concept."""
        checkpoint, index, curated = cx.checkpoint(cfg.sae), cx.index(cfg.sae), _pictures(cx, cfg)
        if bad := [feature for feature in cfg.include if not 0 <= feature < index.d_sae]:
            raise RunError(f"--include {bad[0]}: the SAE has features 0 to {index.d_sae - 1}.")
        against = cfg.against
        if against == "auto":
            against = "negatives" if curated.negative.any() else "all"
        if (against == "all" and len(curated.concepts) == 1 and not curated.negative.any()) or (
            against == "negatives" and not curated.negative.any()
        ):
            raise DatasetError(f"there are no negatives; sample some first: saev task semprobe negatives {cx.run.path}.")
        codes, place = activate(checkpoint, curated, cfg.units == "images", cx.track)
        choosing, judging = halves(curated.true, curated.negative, cfg.val_share, cfg.seed)
        rows: list[dict[str, Any]] = []
        numbers: dict[str, list[np.ndarray]] = {key: [] for key in ("precision", "recall", "f1", "auroc")}
        sizes = {}
        for c, concept in enumerate(curated.concepts):
            true = curated.true[:, c]
            counts = true | curated.negative | (against == "all")
            chosen = detect(codes, true[place], (counts & choosing)[place], cfg.thresholds, index.max)
            judged = detect(codes, true[place], (counts & judging)[place], cfg.thresholds, index.max)
            if not judged.n_positive or not judged.n_negative or not chosen.n_positive or not chosen.n_negative:
                raise DatasetError(
                    f"{concept!r}: one side of the split has no readable image of it, or no negative; add some, or pass --val-share 0."
                )
            for key, kept in numbers.items():
                kept.append(getattr(judged, key))
            sizes[concept] = {"n_positive": judged.n_positive, "n_negative": judged.n_negative}
            # Rank by AUROC, which uses all images; the best F1 over a few thresholds is optimistic. F1 breaks ties.
            best = np.lexsort((-chosen.f1.max(0), -chosen.auroc))[: cfg.top_k]
            listed = [*best.tolist(), *(f for f in cfg.include if f not in best)]
            for order, f in enumerate(listed):
                t = int(chosen.f1[:, f].argmax())
                rows.append(
                    {"concept": concept, "feature": f, "rank": order + 1 if order < len(best) else None, "threshold": cfg.thresholds[t]}
                    | {key: float(getattr(judged, key)[t, f]) for key in ("precision", "recall", "f1")}
                    | {"auroc": float(judged.auroc[f]), "f1_chosen": float(chosen.f1[t, f])}
                )
        told = {
            "sae": cx.sae_name(cfg.sae),
            "held_out": bool((choosing != judging).any()),
            "against": against,
            "concepts": sizes,
            "rows": rows,
            "config": cfg.model_dump(mode="json"),
        }
        return self._write(cx, told, {key: np.stack(each).astype(np.float32) for key, each in numbers.items()})

    def _write(self, cx: TaskContext, told: dict[str, Any], numbers: dict[str, np.ndarray]) -> dict[str, Any]:
        rows, folder = told["rows"], cx.folder()
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        try:
            replace_file(folder / "scores.csv", text.getvalue().encode())
            replace_file(folder / "scores.safetensors", save(numbers, metadata={"concepts": "\n".join(told["concepts"])}))
        except OSError as error:
            raise RunError(f"{folder} cannot be written ({error.strerror or error}); free some disk space, or check permissions.") from None
        cx.run.write_result("semprobe", told)
        header = ["concept", "feature", "threshold", "precision", "recall", "F1", "AUROC"]
        keys = ("precision", "recall", "f1", "auroc")
        cx.table([[row["concept"], row["feature"], f"{row['threshold']:g}", *(f"{row[key]:.3f}" for key in keys)] for row in rows], header)
        if not told["held_out"]:
            cx.say("Features were chosen on the same images they are scored on (too few images, or --val-share 0): scores are optimistic.")
        return {**told, "csv": str(folder / "scores.csv"), "all": str(folder / "scores.safetensors")}

    @verb
    def sheets(self, cx: TaskContext, cfg: SheetsConfig) -> dict[str, Any]:
        """Draw a contact sheet for each concept: its top features on its images, and on negatives."""
        scored = cx.run.result("semprobe")
        if not scored.get("rows"):
            raise RunError(f"{cx.run.path} has no scores; compute them with saev task semprobe score {cx.run.path}.")
        # Default to the settings used for scoring.
        fields = set(_Pictures.model_fields)
        told = {key: value for key, value in scored["config"].items() if key in fields and key not in cfg.model_fields_set}
        cfg = SheetsConfig.model_validate({**cfg.model_dump(), **told})
        if cx.sae_name(cfg.sae) != scored["sae"]:
            raise RunError(f"the scores are for SAE {scored['sae']}, not {cx.sae_name(cfg.sae)}; score that one first.")
        paths = draw_sheets(cx, cx.checkpoint(cfg.sae), cx.index(cfg.sae), _pictures(cx, cfg), scored, cfg)
        cx.say(f"{len(paths)} sheets in {cx.folder('sheets')}")
        return {"sheets": [str(path) for path in paths]}


def _pictures(cx: TaskContext, cfg: _Pictures) -> Curated:
    checkpoint = cx.checkpoint(cfg.sae)
    if not cfg.positives:
        return from_labels(cx, checkpoint, cfg.classes, cfg.per_class, cfg.n_negatives, cfg.seed)
    made = cx.folder(NEGATIVES)
    return from_folders(cx, checkpoint, cfg.positives, cfg.negatives or (str(made) if made.is_dir() else ""))

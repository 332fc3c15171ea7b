"""The control experiment on synthetic scenes with known truth, and on real images.

    python benchmarks/proof.py run                     # all three experiments; minutes each
    python benchmarks/proof.py run shapes              # one of them: shapes, fashion, stamps
    python benchmarks/proof.py run --redo              # re-run the tasks with the existing recordings and SAEs
    python benchmarks/proof.py table                   # results so far, as markdown

Every step is a `saev` command, as typed by a user. Results are in `bench-cache/proof/`: a run folder per experiment, and
`NAME.json` with the numbers. `fashion` needs Debian's dataset-fashion-mnist, `stamps` its tuxpaint-stamps-default. Results and
discussion: docs/control.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent.parent / "bench-cache" / "proof"
STAMPS = Path("/usr/share/tuxpaint/stamps")
"""Debian's tuxpaint-stamps-default."""
FEWEST = 30
"""Minimum number of stamps in a folder for it to be a class."""
STAMP_PX, SIDE_PX = 196, 224
"""Longer side of a stamp, and side of the white image, in pixels."""


@dataclass(frozen=True)
class Experiment:
    """One `saev run`, and the task verbs that follow it."""

    title: str
    run: Sequence[str]
    steps: Sequence[tuple[str, str]]
    """Name of the step, and its command without the run: `semseg control --draws 5`."""
    aims: Sequence[tuple[str, str, float]] = ()
    """Targets: a measure's name, its path in the results, its minimum."""


CLASSIFY = [("classification", "classification train"), ("classification control", "classification control")]
SEGMENT = [("semseg", "semseg train"), ("semseg validate", "semseg validate"), ("semseg control", "semseg control")]
FIDELITY = [("fidelity", "fidelity measure")]
EXPERIMENTS = {
    "shapes": Experiment(
        "`tiny` on `shapes`",
        ["--record-layers", "-2", "-1"],
        [
            *CLASSIFY,
            *SEGMENT,
            # On whole patches, with a probe trained on patches.
            ("patches", "semseg train --loss patches"),
            ("patches validate", "semseg validate --examples 0"),
            ("patches control", "semseg control --level patches"),
            *FIDELITY,
            ("head", ""),
        ],
        [
            ("accuracy", "classification/card/accuracy", 0.95),
            ("mean IoU of patches", "patches validate/patches/miou", 0.8),
            ("mean IoU of pixels", "semseg validate/miou", 0.8),
            ("classes controlled, of images", "classification control/n_pass", 8),
            ("classes controlled, of pixels", "semseg control/n_pass", 8),
        ],
    ),
    "fashion": Experiment(
        "`dinov2-focus` on Fashion-MNIST",
        [
            "--model",
            "dinov2-focus",
            "--set",
            "model.image_px=112",
            "--dataset",
            "fashion-mnist",
            "--n-images",
            "2500",
            "--record-layers",
            "-2",
        ],
        [*CLASSIFY, *FIDELITY],
    ),
    "stamps": Experiment(
        "`dinov2-focus` on stamps",
        ["--model", "dinov2-focus", "--dataset", f"ade20k:{HERE / 'stamps-pictures'}", "--record-layers", "-2"],
        [*CLASSIFY, *SEGMENT, *FIDELITY],
    ),
}


def draw_stamps(folder: Path, most: int = 1000) -> dict[str, int]:
    """Draw the stamps on white images, in `ade20k` layout: scene = class = top folder, mask where they are opaque.

    Args:
        most: maximum number of stamps per class.

    Returns:
        The number of stamps of each class.
    """
    from PIL import Image

    found: dict[str, list[Path]] = {}
    for file in sorted(STAMPS.rglob("*.png")):
        found.setdefault(file.relative_to(STAMPS).parts[0], []).append(file)
    found = {name: files[:most] for name, files in sorted(found.items()) if len(files) >= FEWEST}
    if not found:
        raise SystemExit(f"{STAMPS} has no images: apt install tuxpaint-stamps-default")
    images, masks = (folder / kind / "training" for kind in ("images", "annotations"))
    for each in (images, masks):
        each.mkdir(parents=True, exist_ok=True)
    scenes = []
    for number, (name, files) in enumerate(found.items(), 1):
        for i, file in enumerate(files):
            stamp = Image.open(file).convert("RGBA")
            scale = STAMP_PX / max(stamp.size)
            stamp = stamp.resize([max(1, round(side * scale)) for side in stamp.size], Image.Resampling.LANCZOS)
            at = ((SIDE_PX - stamp.width) // 2, (SIDE_PX - stamp.height) // 2)
            sheet = Image.new("RGB", (SIDE_PX, SIDE_PX), "white")
            sheet.paste(stamp, at, stamp)
            mask = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
            alpha = np.asarray(stamp.getchannel("A"))
            mask[at[1] : at[1] + stamp.height, at[0] : at[0] + stamp.width][alpha > 127] = number
            stem = f"{name}-{i:03}"
            sheet.save(images / f"{stem}.png")
            Image.fromarray(mask).save(masks / f"{stem}.png")
            scenes.append(f"{stem} {name}")
    (folder / "sceneCategories.txt").write_text("\n".join(scenes) + "\n")
    lines = ["Idx\tRatio\tTrain\tVal\tName", *(f"{n}\t0\t0\t0\t{name}" for n, name in enumerate(found, 1))]
    (folder / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    return {name: len(files) for name, files in found.items()}


def saev(*words: str | Path) -> dict[str, Any]:
    """The output of a command with `--json`."""
    command = [sys.executable, "-m", "saev_core.cli", *map(str, words), "--json"]
    print("saev", *words, flush=True)
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"saev {' '.join(map(str, words))} exited with {done.returncode}")
    print(f"  {time.perf_counter() - start:.0f} s", flush=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run(name: str, redo: bool = False) -> dict[str, Any]:
    """Run one experiment, skipping existing results; `redo` re-runs all steps except the recording and the SAE."""
    one, path, kept = EXPERIMENTS[name], HERE / name, HERE / f"{name}.json"
    HERE.mkdir(parents=True, exist_ok=True)
    if name == "stamps" and not (HERE / "stamps-pictures").is_dir():
        print(draw_stamps(HERE / "stamps-pictures"))
    saev("run", *one.run, "--out", path)
    found: dict[str, Any] = {} if redo or not kept.exists() else json.loads(kept.read_text())
    for step, command in one.steps:
        if step == "head" and step not in found:
            found[step] = by_its_own_head(path, found["semseg control"]["rows"])
            kept.write_text(json.dumps(found, indent=1))
        if step not in found:
            task, verb, *flags = command.split()
            found[step] = saev("task", task, verb, path, *flags)
            kept.write_text(json.dumps(found, indent=1))
    return found


def by_its_own_head(path: Path, rows: Sequence[Mapping[str, Any]], n: int = 200, draws: int = 3) -> list[dict[str, Any]]:
    """Predictions of `tiny` itself for the shape of patches of `n` new scenes, with the sign of features chosen by a probe inverted.

    No probe is involved in the prediction: the block after the SAE's site, and the model's own head, run on the edited
    tokens. Flipped and lost are shares of the patches whose majority shape the model predicts correctly.

    Args:
        rows: of `semseg control`.
        draws: number of random feature sets, and of random directions, to average.
    """
    import torch

    from saev_core import Checkpoint, Edit, FeatureIndex, Run
    from saev_core.data.shapes import SHAPES, Shapes, ShapesConfig
    from saev_core.interventions.downstream import Downstream
    from saev_core.models.base import load_model
    from saev_core.types import Box
    from saev_tasks.shared.control_experiment import matched

    opened, scenes = Run.open(path), Shapes(ShapesConfig(n=3000 + n))
    model: Any = load_model("tiny", "cpu")
    sae = opened.best or "topk"
    checkpoint, frequency = Checkpoint.load(opened.sae_dir(sae)), FeatureIndex.open(opened.features_path(sae)).frequency
    fresh = [scenes[3000 + i] for i in range(n)]
    whole = Box(0, 0, scenes.cfg.size, scenes.cfg.size)
    shown = np.stack([scenes.patch_factors(3000 + i, model.grid, whole)[: len(SHAPES)] for i in range(n)])  # [n, 10, n_patches]
    truth = torch.from_numpy(np.where((shown == 1).any(1), shown.argmax(1), -1))
    with torch.no_grad():
        downstream = Downstream.of(model, torch.stack([model.transform(one.image) for one in fresh]), checkpoint.site)

        def said(edits: Sequence[Edit]) -> torch.Tensor:
            told: torch.Tensor = model.heads(downstream(list(edits), checkpoint))["shape"]
            return told.argmax(-1)

        right = said([]) == truth
        out = []
        for row in (row for row in rows if row["name"] in SHAPES):
            c, features, rng = SHAPES.index(row["name"]), row["choice"]["features"], np.random.RandomState(row["number"])
            edits = [Edit.of(checkpoint, 1.0, feature, -1.0, "scale") for feature in features]
            axes = torch.from_numpy(rng.standard_normal((draws, model.d_model)).astype(np.float32))
            tried = {
                "suppressed": [edits],
                "random_features": [
                    [Edit.of(checkpoint, 1.0, feature, -1.0, "scale") for feature in matched(frequency, features, (), rng)]
                    for _ in range(draws)
                ],
                "random_direction": [[edit.along(edit.direction.norm() * axis / axis.norm()) for edit in edits] for axis in axes],
            }
            told: dict[str, Any] = {"name": row["name"], "features": features, "n": int((right & (truth == c)).sum())}
            for name, sets in tried.items():
                gone = torch.stack([right & (said(one) != truth) for one in sets]).float().mean(0)  # [n, n_patches]
                told[name] = {
                    "flipped": float(gone[truth == c].sum() / (right & (truth == c)).sum()),
                    "others_lost": float(gone[truth != c].sum() / (right & (truth != c) & (truth >= 0)).sum()),
                }
            out.append(told)
    return out


# Reporting.


def percent(value: float | None, bounds: Sequence[float] = ()) -> str:
    """`93 (90-95)`, in per cent."""
    if value is None:
        return "-"
    low_high = f" ({100 * bounds[0]:.0f}-{100 * bounds[1]:.0f})" if bounds else ""
    return f"{100 * value:.1f}{low_high}"


def control_table(rows: Sequence[Mapping[str, Any]], before: Mapping[str, float], score: str) -> str:
    """The control experiment as markdown, one line per class; shares in per cent with 95 % intervals.

    Args:
        before: each class's score before any edit.
        score: name of that score, the column's header.
    """
    head = [
        "class",
        score,
        "features",
        "f' / f",
        "flipped",
        "others lose",
        "most loses",
        "random features",
        "random direction",
        "controlled",
    ]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        did, few, along = (row[key] for key in ("suppressed", "random_features", "random_direction"))
        lines.append(
            [
                row["name"],
                f"{before[row['name']]:.2f}",
                str(len(row["choice"]["features"])),
                f"{row['choice']['strength']:g}",
                percent(did["flipped"], did["flipped_interval"]),
                percent(did["others_lost"], did["others_lost_interval"]),
                f"{did['worst_class']} {percent(did['worst_lost'])}",
                percent(few["flipped"], few["flipped_interval"]),
                percent(along["flipped"], along["flipped_interval"]),
                "yes" if row["passes"] else "no",
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(name: str, found: Mapping[str, Any]) -> str:
    """All tables of one experiment as markdown; steps without results are skipped."""
    one, out = EXPERIMENTS[name], [f"## {EXPERIMENTS[name].title}"]
    if told := found.get("classification"):
        card = told["card"]
        bounds = percent(card["accuracy"], card["accuracy_interval"])
        out.append(f"Classification, {told['tokens']} of {told['site']}: accuracy {bounds} % on {card['n_val']} validation images.")
    if told := found.get("classification control"):
        accuracy = {row["class"]: row["accuracy"] for row in found["classification"]["classes"]}
        out += [control_table(told["rows"], accuracy, "accuracy"), _passes(told)]
    for kind, level in (("semseg", "pixels"), ("patches", "patches")):
        told = found.get(f"{kind} validate")
        if told:
            shares = {key: percent(told[key], told["intervals"].get(key, ())) for key in ("miou", "accuracy")}
            out.append(f"Segmentation, trained on {level}: mean IoU {shares['miou']} %, accuracy {shares['accuracy']} % of pixels.")
            if told["patches"]:
                out.append(f"On patches: mean IoU {percent(told['patches']['miou'])} %, accuracy {percent(told['patches']['accuracy'])} %.")
            for oracle, scores in told["ceiling"].items():
                out.append(f"An oracle that knows each patch's {oracle}: mean IoU {percent(scores['miou'])} % of pixels.")
        if told := found.get(f"{kind} control"):
            out += [
                control_table(told["rows"], {row["name"]: row["iou"] for row in told["rows"]}, f"IoU of {told['level']}"),
                _passes(told),
            ]
    if told := found.get("head"):
        out += ["With the model's own head, features at strength -1:", head_table(told)]
    if told := found.get("fidelity"):
        out.append(fidelity_table(told))
    if one.aims:
        lines = [["measure", "target: at least", "result", ""], ["---"] * 4]
        for what, place, least in one.aims:
            value: Any = found
            for key in place.split("/"):
                value = value.get(key, {}) if isinstance(value, Mapping) else {}
            if value != {}:
                lines.append([what, f"{least:g}", f"{value:.3g}", "" if value >= least else "MISSED"])
        out.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(out)


def head_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """`by_its_own_head` as markdown, in per cent."""
    head = ["shape", "features", "patches", "flipped", "others lose", "random features: flipped / others", "random direction"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        pairs = [f"{percent(row[key]['flipped'])} / {percent(row[key]['others_lost'])}" for key in ("random_features", "random_direction")]
        did = row["suppressed"]
        lines.append([row["name"], str(len(row["features"])), str(row["n"]), percent(did["flipped"]), percent(did["others_lost"]), *pairs])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fidelity_table(told: Mapping[str, Any]) -> str:
    """The model's loss under the SAE's reconstruction, as markdown."""
    lines = [["output", "measure", "original", "SAE", "zero", "mean", "recovered (mean)"], ["---"] * 7]
    for output, measures in told["outputs"].items():
        for measure, row in measures.items():
            values = [f"{row[key]:.3f}" if row[key] is not None else "-" for key in ("original", "sae", "zero", "mean")]
            share = row["recovered"]["mean"]
            lines.append([output, measure, *values, f"{share:.3f}" if share is not None else "-"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _passes(told: Mapping[str, Any]) -> str:
    n_val, n_train = told["n_val"], told["n_train"]
    return f"{told['n_pass']} of {told['n_classes']} classes controlled, on {n_val} validation images ({n_train} training images)."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("names", nargs="*", choices=EXPERIMENTS, help="experiments; default: all")
    parser.add_argument("--redo", action="store_true", help="re-run all task steps")
    args = parser.parse_args()
    for name in args.names or EXPERIMENTS:
        if args.what == "run":
            run(name, args.redo)
        if (HERE / f"{name}.json").exists():
            print(report(name, json.loads((HERE / f"{name}.json").read_text())))


if __name__ == "__main__":
    main()

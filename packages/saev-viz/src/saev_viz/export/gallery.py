"""`export`: a gallery of selected features as a folder of static files, for papers and collaborators. Needs no server.

<folder>/index.html             all features, with search, filter and sort
<folder>/features/<n>.html      one page per feature
<folder>/pictures/<image>.jpg   thumbnails, each image once
<folder>/maps/*.png             heat maps, one pixel per patch
<folder>/gallery.css, .js       style sheet and search
<folder>/gallery.json           what was exported from which SAE; marks the folder as a gallery
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from saev_core import Run, SaevError
from saev_core.config.stages import ReportConfig
from saev_core.errors import RunError
from saev_core.support.files import recover_folder, replace_folder
from saev_core.support.progress import Track, silent
from saev_viz.export.pages import card, feature_page, index_page, note_of
from saev_viz.export.static_page import Still
from saev_viz.html.feature_page import head, heat, page
from saev_viz.run_view.choose_features import choose
from saev_viz.run_view.feature_table import Query
from saev_viz.run_view.library import Library, View
from saev_viz.static import read_asset

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of the folder's layout."""
PICTURE_PX = 224
"""Longer side of the thumbnails."""
_OURS = re.compile(r"index\.html|gallery\.(css|js|json)|features/\d+\.html|pictures/\d+\.jpg|maps/[0-9a-f-]+\.png")


class _Chosen(View):
    """A view whose nearest features are limited to the exported ones."""

    among: Sequence[int] = ()

    def nearest(self, feature: int, n: int = 8) -> list[tuple[int, float]]:
        others = np.array([other for other in self.among if other != feature and self.table.alive[other]], int)
        cosine = self._directions[others] @ self._directions[feature]
        return [(int(others[i]), float(cosine[i])) for i in np.argsort(-cosine, kind="stable")[:n]]


def export(
    run: Run,
    folder: str | Path,
    *,
    features: Sequence[int] = (),
    query: str = "",
    n: int | None = None,
    sae: str = "",
    dataset: str = "",
    say: Callable[[str], None] = log.info,
    track: Track = silent,
) -> Path:
    """Write a gallery into `folder` atomically, replacing an earlier one. Returns its index page.

    Args:
        features: features to export, in this order; without features and query, those that the report would choose.
        query: a search as in the viewer; exports the strongest matches.
        n: maximum number of features; by default the report's `n_features`.
        sae: name of the SAE; by default the one that the viewer shows first.
        dataset: location of the pictures, in the syntax of `--dataset`.

    Raises:
        RunError: nothing is indexed, there is no such feature, nothing matches, or the folder holds other files.
    """
    folder = Path(folder).resolve()
    recover_folder(folder)
    _refuse_foreign(folder)
    library = Library(run, dataset)
    view = _Chosen(library, sae or library.first) if not sae or sae in library.own else None
    if view is None:
        raise RunError(f"{run.path} has no indexed SAE {sae!r}; it has {', '.join(library.own)}.")
    view.among = selection(view, features, query, n)
    try:
        with replace_folder(folder) as new:
            n_pictures = _write(view, new, track)
            size = sum(file.stat().st_size for file in new.rglob("*") if file.is_file())
    except OSError as error:
        raise RunError(f"{folder}: the gallery cannot be written ({error.strerror or error}); choose another folder.") from None
    if library.no_pictures:
        say(library.no_pictures)
    say(f"{len(view.among)} features with {n_pictures} pictures, {size / 1e6:.1f} MB: {folder / 'index.html'}")
    return folder / "index.html"


def selection(view: View, features: Sequence[int] = (), query: str = "", n: int | None = None) -> list[int]:
    """The features to export, see `export`.

    Raises:
        RunError: there is no such feature, nothing matches, or both features and a query are given.
    """
    cfg: ReportConfig = view.library.run.config.report
    most = cfg.n_features if n is None else n
    if most < 1:
        raise RunError(f"--n must be at least 1, got {most}.")
    if features:
        if query:
            raise RunError("--features and --query are mutually exclusive; give only one.")
        return view.index.select((1, 0), include=list(dict.fromkeys(features)))  # empty range: validates and returns the included ones only
    if query:
        try:
            found = view.table.find(Query(query), view.notes.all())[:most]
        except ValueError as error:
            raise RunError(str(error)) from None
        if not len(found):
            raise RunError(f"no feature matches {query!r}; try other words, or test the query in the viewer first.")
        return [int(feature) for feature in found]
    cfg = cfg.model_copy(update={"n_features": most})
    telling = [int(feature) for feature in view.table.truth][: most // 2]
    return choose(view.index, view._directions, cfg, first=telling, labels=view.library.labels)[: max(most, len(cfg.include))]


def _refuse_foreign(folder: Path) -> None:
    """Reject a folder that contains files not written by an export."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"{folder} is a file; choose a folder.")
    there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    if not there:
        return
    try:
        ours = "saev_gallery" in json.loads((folder / "gallery.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise RunError(f"{folder} is neither empty nor a gallery; choose another folder.")
    if foreign := [name for name in there if not _OURS.fullmatch(name)]:
        raise RunError(f"{folder} contains {foreign[0]}, which is not part of a gallery; move it away or choose another folder.")


def _write(view: _Chosen, folder: Path, track: Track) -> int:
    """Write all files of the gallery; return the number of pictures."""
    library, chosen = view.library, view.among
    still = Still(chosen, heats=_can_heat(view))
    for name in ("features", "pictures", "maps"):
        (folder / name).mkdir()
    notes = view.notes.all()
    for at, feature in enumerate(chosen):
        found = page(view, feature).replace("Click a picture to open it in the Image tab.", "Click a picture to hide its heat map.")
        body = still.rewrite(head(view, feature) + note_of(notes.get(feature, "")) + found, "../")
        before, after = chosen[at - 1] if at else None, chosen[at + 1] if at + 1 < len(chosen) else None
        (folder / "features" / f"{feature}.html").write_text(feature_page(view, feature, body, before, after), encoding="utf-8")
    cards = "".join(still.rewrite(card(view, feature, notes.get(feature, ""))) for feature in chosen)
    (folder / "index.html").write_text(index_page(view, chosen, cards, notes), encoding="utf-8")
    for name, data in still.maps.items():
        (folder / "maps" / f"{name}.png").write_bytes(data)
    # In ascending order of images: works with sequential data sets, and encodes each image once for all its maps.
    with track("export", len(still.pictures) + len(still.asked), "files") as meter:
        for image in sorted(still.pictures):
            (folder / "pictures" / f"{image}.jpg").write_bytes(library.pictures.jpeg(image, PICTURE_PX))
            meter.update(1)
        for feature, image in sorted(still.asked, key=lambda pair: pair[::-1]):
            (folder / "maps" / f"{feature}-{image}.png").write_bytes(heat(view, feature, image, "inferno", "percentile"))
            meter.update(1)
    for name in ("gallery.css", "gallery.js"):
        (folder / name).write_text(read_asset(name), encoding="utf-8")
    about = {"saev_gallery": FORMAT, "saev_viz": version("saev-viz"), "sae": view.name, "checkpoint": view.index.attributes["checkpoint"]}
    (folder / "gallery.json").write_text(json.dumps({**about, "features": list(chosen)}, indent=1), encoding="utf-8")
    return len(still.pictures)


def _can_heat(view: _Chosen) -> bool:
    """Whether heat maps of samples can be drawn: they need the recorded activations."""
    image = next((sample.index for feature in view.among for sample in view.index.samples(feature)), None)
    if image is None:
        return False
    try:
        view.seen(image)
    except SaevError as error:
        log.warning("exporting samples without heat maps: %s", error)
        return False
    return True

"""`Still`: turns the viewer's HTML into static pages: pictures become files, buttons become links. Does not import gradio."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection
from html import escape
from html.parser import HTMLParser

from saev_viz.run_view.addresses import PREFIX

_IMAGE = re.compile(rf"{PREFIX}/image/(\d+)(?:\?px=(\d+))?")
_MAP = re.compile(rf"{PREFIX}/map/[^/]+/(\d+)/(\d+)(?:\?.*)?", re.DOTALL)
_PNG = "data:image/png;base64,"

Attributes = list[tuple[str, str | None]]


class Still(HTMLParser):
    """Rewrites pages and collects the files they need. Use one object per gallery, so that every file is written once."""

    def __init__(self, features: Collection[int], *, heats: bool = True) -> None:
        """
        Args:
            features: features with a page; references to others become plain text.
            heats: whether heat maps of samples will be written; otherwise their images and button are left out.
        """
        super().__init__(convert_charrefs=False)
        self._features, self._heats = frozenset(features), heats
        self.pictures: set[int] = set()
        """Images shown on any page."""
        self.maps: dict[str, bytes] = {}
        """PNG files by name: heat maps embedded in the pages."""
        self.asked: set[tuple[int, int]] = set()
        """Feature and image of heat maps still to be drawn, as `maps/<feature>-<image>.png`."""
        self._out: list[str] = []
        self._ends: list[str] = []
        self._skip = 0
        self._root = ""

    def rewrite(self, html: str, root: str = "") -> str:
        """Return the page rewritten for use without a server.

        Args:
            root: relative path from the page to the gallery's folder, such as `../`.
        """
        self._out, self._ends, self._skip, self._root = [], [], 0, root
        self.feed(html)
        self.close()
        self.reset()
        return "".join(self._out)

    def handle_starttag(self, tag: str, attrs: Attributes) -> None:
        given = dict(attrs)
        if tag == "button":
            if self._skip or "data-copy" in given or ("data-heats" in given and not self._heats):
                self._skip += 1
                return
            if "data-feature" in given:
                self._ends.append(self._feature(int(given.pop("data-feature") or -1), given))
                return
            self._ends.append("button")
        if self._skip:
            return
        if tag == "img":
            self._img(given)
            return
        self._out.append(self.get_starttag_text() or "")

    def handle_startendtag(self, tag: str, attrs: Attributes) -> None:
        if tag == "img":
            self.handle_starttag(tag, attrs)
        elif not self._skip:
            self._out.append(self.get_starttag_text() or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "button":
            if self._skip:
                self._skip -= 1
                return
            tag = self._ends.pop()
        if not self._skip:
            self._out.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self._out.append(data)

    def handle_entityref(self, name: str) -> None:
        self.handle_data(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self.handle_data(f"&#{name};")

    def _feature(self, feature: int, given: dict[str, str | None]) -> str:
        """Open a link to a feature's page, or plain text if it has none; return the tag."""
        if feature in self._features:
            self._out.append(_tag("a", {**given, "href": f"{self._root}features/{feature}.html"}))
            return "a"
        self._out.append(_tag("span", {**given, "class": "absent"}))
        return "span"

    def _img(self, given: dict[str, str | None]) -> None:
        source, later = given.get("src") or "", given.get("data-src") or ""
        if found := _IMAGE.fullmatch(source):
            self.pictures.add(int(found[1]))
            given["src"] = f"{self._root}pictures/{found[1]}.jpg"
        elif source.startswith(_PNG):
            data = base64.b64decode(source.removeprefix(_PNG))
            name = hashlib.sha256(data).hexdigest()[:20]
            self.maps[name] = data
            given |= {"src": f"{self._root}maps/{name}.png", "loading": "lazy"}
        if found := _MAP.fullmatch(later):
            if not self._heats:
                return
            self.asked.add((int(found[1]), int(found[2])))
            given["data-src"] = f"{self._root}maps/{found[1]}-{found[2]}.png"
        self._out.append(_tag("img", given))


def _tag(tag: str, attributes: dict[str, str | None]) -> str:
    inside = "".join(f" {key}" if value is None else f' {key}="{escape(value)}"' for key, value in attributes.items())
    return f"<{tag}{inside}>"

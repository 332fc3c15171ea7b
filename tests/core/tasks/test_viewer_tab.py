"""The protocols between the viewer and the tabs of plugins."""

from __future__ import annotations

import subprocess
import sys

from saev_core.tasks.viewer_tab import TabHost, ViewerTab


class Tab:
    title = "Strength"

    def build(self, host: TabHost) -> None:
        raise NotImplementedError


def test_a_tab_is_whatever_has_a_title_and_can_be_built() -> None:
    assert isinstance(Tab(), ViewerTab)
    assert not isinstance(("Strength", Tab().build), ViewerTab)


def test_the_protocols_import_neither_torch_nor_gradio() -> None:
    script = """
import sys
import saev_core.tasks.viewer_tab
print([name for name in ("torch", "gradio", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr

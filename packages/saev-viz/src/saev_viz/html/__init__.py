"""Parts of pages as HTML text, shared by the viewer, the report and the gallery."""

"""The gallery: a folder of HTML pages that needs no server."""

"""The activation store: a zarr v3 group; its shards are written, read and checksummed here.

Import `ActivationStore`, `StoreMeta`. The only package that knows the layout on disk; models and data sets
appear only as metadata.
"""

"""The activation store: a zarr v3 group; its shards are written, read and checksummed here.

Import `ActivationStore`, `StoreMeta`. The only package that knows the bytes on disk; it knows models and data sets only
through a store's metadata.
"""

"""The activation store: a zarr v3 group whose shards are written and checked here.

Import `ActivationStore`, `StoreMeta`. The only room that knows the bytes on disk; it knows nothing of models or data sets beyond
what a store's metadata say of them.
"""

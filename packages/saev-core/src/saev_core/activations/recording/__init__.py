"""Recording: images through a model into a store, planned, resumable, in parts.

Import `record`, `plan`. It knows nothing of who reads the store.
"""

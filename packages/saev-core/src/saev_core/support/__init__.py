"""General helpers: atomic files, threads, progress, devices, digests, out-of-memory errors.

Import from its modules. Independent of models, activations and SAEs; imports only `errors`.
"""

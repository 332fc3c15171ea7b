"""What every room may need and no SAE: files written whole or not at all, threads, progress, devices, digests, memory errors.

Import from its modules. It knows nothing of models, activations or SAEs, and imports only `errors`.
"""

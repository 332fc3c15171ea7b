"""Vision models: the base class, image transforms and where they crop, and `tiny`, the model that is built in.

Import `VisionModel`, `ModelConfig`, `load_model`, `TextSpace`. It knows nothing of data sets, activations or SAEs.
"""

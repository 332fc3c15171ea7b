"""Vision models: the base class, image transforms and their crops, and the built-in model `tiny`.

Import `VisionModel`, `ModelConfig`, `load_model`, `TextSpace`. Independent of data sets, activations and SAEs.
"""

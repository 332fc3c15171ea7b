"""The feature index: per feature how often and how strongly it fires, its top images, and its name.

Import `FeatureIndex`, `index_features`. It knows stores and checkpoints, nothing of training or steering.
"""

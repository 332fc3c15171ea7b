"""The feature index: how often and how strongly each feature fires, its top images, and its name.

Import `FeatureIndex`, `index_features`. Depends on stores and checkpoints, not on training or steering.
"""

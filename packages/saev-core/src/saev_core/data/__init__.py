"""Images: the base class of data sets, decoding, downloading and unpacking, and the built-in data set `shapes`.

Import `ImageDataset`, `DatasetConfig`, `load_dataset`, `open_rgb`. Independent of models, activations and SAEs.
"""

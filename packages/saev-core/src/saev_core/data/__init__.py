"""Images: the base class of data sets, decoding, downloading and unpacking, and `shapes`, the data set that is built in.

Import `ImageDataset`, `DatasetConfig`, `load_dataset`, `open_rgb`. It knows nothing of models, activations or SAEs.
"""

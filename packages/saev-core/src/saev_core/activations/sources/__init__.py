"""Where vectors come from: a store, a live model or an array; shuffled for training, or image by image in order."""

"""What features fire on: the index, its samples and histograms, and names."""

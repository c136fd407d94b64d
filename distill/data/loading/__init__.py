"""From records to batches on the device: rank_slice, workers, prefetch, loader."""

"""The mathematics: tensors in, tensors out; no files, no devices, no progress bars."""

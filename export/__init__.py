"""Exports a checkpoint to one file, in ONNX, TorchScript or .pt2: see ``retina-export --help``."""

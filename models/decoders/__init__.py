"""Decoders that more than one model, or more than one variant of a model, can stand on."""

"""Acquisition and annotation, and the batches of labels that they make."""

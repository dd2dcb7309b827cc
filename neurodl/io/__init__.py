"""Readers and writers, one file per container. They know formats, not experiments."""

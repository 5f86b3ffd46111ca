"""Judges what clients saw of a node: reads a history of their calls and names each broken promise."""

"""Tensors only: spans, the door of attention, pooling, projectors, heads, precision."""

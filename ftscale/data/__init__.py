"""Rows in, micro-batches out: sources and formats, global order, batching and loading."""

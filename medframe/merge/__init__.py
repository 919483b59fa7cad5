"""Adapters merged into a model's weights on disk, tensor by tensor, into a model directory."""

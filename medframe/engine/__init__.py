"""Answers of a model to many questions at a time."""

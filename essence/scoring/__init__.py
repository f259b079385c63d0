"""Benchmarks, generation, grading and the statistics of an accuracy."""

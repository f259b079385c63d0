"""Arithmetic on what a model and a training take: parameters, FLOPs, memory, forward passes. No torch."""

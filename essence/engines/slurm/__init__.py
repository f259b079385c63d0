"""Slurm: the engine, a site, the text of a job, the queue, and which job works on which stage."""

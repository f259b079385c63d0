"""Slurm: a site, the text of a job, the queue, and the jobs of what is left."""

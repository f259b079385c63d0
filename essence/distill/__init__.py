"""The science: which tokens a student reads and learns from, the objective, the schedule, the training loop."""

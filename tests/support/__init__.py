"""What several tests need: the project's commands, engines, made-up runs and models."""

"""What the tasks call: one module a command."""

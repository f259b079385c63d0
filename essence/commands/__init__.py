"""What the tasks call: one module per command."""

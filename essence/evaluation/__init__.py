"""From prompts to completions, verdicts and an accuracy with its interval."""

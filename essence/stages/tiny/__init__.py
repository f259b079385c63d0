"""The matrix in miniature: made-up arithmetic with worked traces, and Qwen3 models small enough for a laptop."""

"""The record of a run: what a manifest holds, where its facts come from, and how it is checked."""

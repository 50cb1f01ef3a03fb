"""Runs of fedef: engines, benchmarks and the command line."""

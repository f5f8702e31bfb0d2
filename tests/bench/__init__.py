"""Benchmarks: what they choose, measure and print."""

"""Distributed traces: who makes which span, and how they hang together."""

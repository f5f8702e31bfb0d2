"""Figures beside their yardsticks, in one run."""

"""The routes, and what they share."""

"""One suite for each port, inherited by every implementation of it."""

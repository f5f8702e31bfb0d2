"""The worker between its topics, in virtual time."""

"""The engine and its dispatcher, in virtual time."""

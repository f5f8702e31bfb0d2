"""The whole pipeline on the real local stack, and what other live tests need of it."""

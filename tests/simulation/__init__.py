"""Virtual time and the fakes: one set for all tests, and the simulation of the whole engine."""

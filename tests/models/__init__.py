"""Tests of the shipped models, of the backend that serves them locally, and the model the other tests use."""

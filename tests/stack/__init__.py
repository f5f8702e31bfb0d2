"""Tests of the local servers and their supervisor."""

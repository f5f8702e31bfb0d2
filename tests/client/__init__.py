"""Tests of the client library, and of the topics it talks to."""

"""The Open Inference Protocol's words: requests, answers, models."""

"""The cache key, fuzzed: requests from a seed, spelt twice or changed once, and judged by an oracle of their own."""

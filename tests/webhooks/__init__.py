"""Callbacks: to receivers of every kind, over real sockets and a real Kafka."""

"""Requests topic -> engine -> results and events. Faust lives only here."""

"""Tests: pure ones beside the package's folders, `live/` and those marked `live` on the real local stack."""

"""The peers, each behind an adapter, run by the Python of an environment of their own."""

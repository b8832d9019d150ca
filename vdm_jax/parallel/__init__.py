"""Meshes, sharding rules, many hosts, and compilation for machines that are not here."""

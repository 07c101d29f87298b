"""Runs quantum circuit plans."""

"""Servers on loopback, real ones, that count what they are asked and fail when they are told."""

"""Flower server side of fedef."""

"""Flower client side of fedef."""

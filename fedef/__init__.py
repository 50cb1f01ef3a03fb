"""fedef: federated learning with normalized error feedback."""

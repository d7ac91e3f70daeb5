"""What compares sets of points, and particles that interact."""

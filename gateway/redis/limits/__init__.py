"""What all nodes together count against limits."""

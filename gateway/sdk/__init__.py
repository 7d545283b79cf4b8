"""What authors of services write against."""

"""Several independent Redis servers, each with its share of the channels."""

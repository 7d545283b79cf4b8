"""From one read of the broker to every local subscriber, in order, with gaps repaired."""

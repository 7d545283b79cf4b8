"""Numbers of subscribers, for apps with `subscription_counts`: counted on each node, and sent to its clients."""

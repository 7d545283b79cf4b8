"""Numbers of subscribers: what a node counts for an app with `subscription_counts`, and what its clients are told."""

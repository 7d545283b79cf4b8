"""One client: its outbox and inbox, its limits and quotas."""

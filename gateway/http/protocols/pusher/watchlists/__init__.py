"""Watchlists, for apps with `watchlists`: users who are online, and the clients that watch them."""

"""Users who sign in: which of them are online, for apps with `watchlists`, and the clients that watch them."""

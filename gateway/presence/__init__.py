"""Roster entries and names of this node's connections, and the rosters that its subscribers receive."""

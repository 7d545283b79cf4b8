"""What the connections of this node own in the cluster, and the rosters that its subscribers are told of."""

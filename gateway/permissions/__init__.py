"""Who may do what: rules, owners and tokens decide for each client, channel and operation."""

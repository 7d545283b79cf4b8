"""The fault laboratory: nodes, Redis, load, faults, and a checker of what clients received.

    lab.py        a running deployment under numbered load
    client.py     small clients that speak the protocol and resume from their position; crowd.py: many of them
    publisher.py  a process that publishes and records acknowledgements; load.py: controls that process
    journal.py    what a run records; checker.py checks it (pure); figures.py measures it (pure)
    faults/       one function for each row of the table of promises
    campaign.py   runs rows in one lab and checks each; table.py prints; chaos.py, soak.py: long runs
    mutations/    removes one guard of the gateway at a time and requires that its row or test fails

    python -m tests.fault_lab faults|chaos|soak --help

All times are from the machine's monotonic clock, which all processes share.
"""

"""The fault laboratory: nodes, Redis, load, faults, and a judge of what clients received.

    lab.py        a running deployment under numbered load
    client.py     small clients that speak the protocol and come back by position; crowd.py: many of them
    publisher.py  a process that publishes and records what was acknowledged; load.py: that process from outside
    journal.py    what is written down; checker.py judges it (pure); figures.py measures it (pure)
    faults/       one function for each row of the table of promises
    campaign.py   runs rows in one lab and judges each; table.py prints; chaos.py, soak.py: long modes
    mutations/    takes one guard out of the gateway at a time and sees its row turn red

    python -m tests.faults.lab faults|chaos|soak --help

All times are of the machine's monotonic clock, which processes share.
"""

"""Parts that the scenarios share: processes on a CPU of their own, the message, the machine."""

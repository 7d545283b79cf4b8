"""What the scenarios use: processes on a CPU of their own, the message, the machine."""

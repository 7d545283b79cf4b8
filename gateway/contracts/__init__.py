"""Interfaces to the shared store: broker, directory, history, revocations, control orders. One contract test each."""

"""The interfaces to the shared store: broker, directory, history, revocations. One contract test each."""

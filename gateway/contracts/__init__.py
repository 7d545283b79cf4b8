"""What a node needs of the shared store: broker, directory, history, revocations. One contract test each."""

"""A small agent that works without a key or a network, and the guided tour that is made with it."""

"""One module per protocol that a hub drives: where bytes meet sockets."""

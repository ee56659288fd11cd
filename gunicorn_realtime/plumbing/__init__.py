"""All that crosses processes: the pairs of sockets, their frames, the lifeline."""

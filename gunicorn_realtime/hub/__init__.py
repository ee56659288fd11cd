"""The hub: the process whose gevent loop owns the offloaded connections. No Django in it."""

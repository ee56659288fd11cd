"""Where messages come from: Redis, or a local bus that speaks the same protocol (RESP)."""

"""Which process does what: ranks, starting them, losing one."""

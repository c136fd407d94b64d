"""Which sample comes at which position: shuffled (random access), lanes (shards)."""

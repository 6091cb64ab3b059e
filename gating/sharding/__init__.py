"""Models that are cut over several processes (FSDP2): loaded, trained with gates, without closed heads, and saved."""

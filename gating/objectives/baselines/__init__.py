"""Which gates close, by the methods that the exact budget is compared with."""

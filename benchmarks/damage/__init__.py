"""Damaged and hostile model folders: what loading makes of them."""

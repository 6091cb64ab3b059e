"""Loading damaged and hostile model folders."""

"""What generated clips are measured by."""

"""Floor 0: what every area needs and none owns."""

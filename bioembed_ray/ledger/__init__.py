"""What is known of every recording, for archives of any size."""

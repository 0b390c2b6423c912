"""Studies of label efficiency on recorded and synthetic labels."""

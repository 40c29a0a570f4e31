"""Load on a running server, and what it made of it. Knows the wire and time, and nothing of the server's insides."""

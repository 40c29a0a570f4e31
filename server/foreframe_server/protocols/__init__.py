"""The door below the app: who may connect, how fast a request must come, what bytes are one. Knows no route."""

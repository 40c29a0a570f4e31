"""The service: doors, scheduling, caching and the command line around one engine."""

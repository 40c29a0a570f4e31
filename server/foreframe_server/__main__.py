"""`python -m foreframe_server`: the command line without its entry point, as torchrun needs it."""

from foreframe_server.cli import main

if __name__ == "__main__":
    main()

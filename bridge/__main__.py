"""`python -m bridge` is `mqtt-bridge`."""

from bridge.cli import main

if __name__ == "__main__":
    main()

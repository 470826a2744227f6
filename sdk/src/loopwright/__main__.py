"""`python -m loopwright`: the command line, where the script is not on the path."""

from loopwright.cli import main

if __name__ == "__main__":
    main()

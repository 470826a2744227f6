"""One complete loop on this machine: ask, correct, train, gate, swap, ask again.

The demo uses only the public APIs, through the OpenAI client and the SDK, as an app does.
"""

"""One whole loop on this machine: ask, correct, train, gate, swap, ask again.

Everything goes through the public doors: the OpenAI client and the SDK, as an app would.
"""

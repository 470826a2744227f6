"""The notebook chapter "Continuous Improvement and Feedback Loops" as one command: its rows, its rule, its model.

The rows are imported as responses with comments, the trainer makes `response + " " + feedback` of each, and the
retrained model answers. `docs/chapter.md` says where each point of the chapter is.
"""

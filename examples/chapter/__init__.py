"""The notebook chapter "Continuous Improvement and Feedback Loops" as one command.

The chapter's rows are imported as responses with comments, the trainer makes `response + " " + feedback` of each row,
and the retrained model answers. `docs/chapter.md` shows where each point of the chapter is implemented.
"""

"""The stream engine: a pure step over keyed state, run exactly once (design section 5).

`step` has the port that steps are written against, `engine` what runs them on Kafka.
"""

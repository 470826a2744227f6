"""The operators' page.

Once a second, `refresher` reads a `PageData`, `view_model` turns it into a `PageView`, and `render` turns that into
HTML, which `page` shows in all open browsers. The steps between reading and showing are pure.
"""

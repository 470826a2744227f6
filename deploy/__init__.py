"""Ways to run Loopwright: `local` runs it without containers, `docker` holds the files of the images."""

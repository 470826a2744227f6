"""Loopwright in containers: what `docker-compose.yml` at the root builds from, and what runs inside."""

"""Build files and helper scripts of the images that `docker-compose.yml` defines."""

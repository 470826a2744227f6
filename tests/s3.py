"""An S3 in this process, by moto. Its address and credentials are in the environment, where a deployment has them."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from shared.adapters.artifacts_remote import OPTIONS


@contextmanager
def own_s3() -> Iterator[str]:
    """The URL of a bucket. Processes that are started meanwhile find it by the same environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    told = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in told.items():
                patch.setenv(name, value)
            # moto keeps its buckets for as long as the process lives: each caller has one of its own.
            bucket = f"loopwright-{secrets.token_hex(4)}"
            fsspec.filesystem("s3", **OPTIONS["s3"]).mkdir(bucket)
            yield f"s3://{bucket}"
    finally:
        server.stop()
        # Kept clients would go on asking a server that is gone.
        fsspec.get_filesystem_class("s3").clear_instance_cache()

"""An S3 server in this process (moto), with address and credentials in the environment, as in a deployment."""

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
    """Yield the URL of a new bucket. Child processes find the server through the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            # moto keeps buckets until the process ends, so each caller gets a new one.
            bucket = f"loopwright-{secrets.token_hex(4)}"
            fsspec.filesystem("s3", **OPTIONS["s3"]).mkdir(bucket)
            yield f"s3://{bucket}"
    finally:
        server.stop()
        # Cached clients would keep using the stopped server.
        fsspec.get_filesystem_class("s3").clear_instance_cache()

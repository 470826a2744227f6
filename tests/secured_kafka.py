"""A real broker as a company runs it: TLS, SASL, and an authorizer that denies what no ACL allows."""

from __future__ import annotations

import datetime
import ipaddress
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from deploy.kafka_acls import Acl
from deploy.local.ports import HOST, choose_ports
from shared.kafka_connection import KafkaConnection, KafkaProperties
from tests.brokers import own_kafka

RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
}
OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Create": AclOperation.CREATE,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
    "AlterConfigs": AclOperation.ALTER_CONFIGS,
}
PLAIN_USERS = ("plain-one", "plain-two")
LOGIN = "org.apache.kafka.common.security"


@dataclass
class SecuredKafka:
    """The broker, its administrator, and the files that its users need."""

    servers: str
    """The SASL_SSL listener."""
    admin_servers: str
    """A listener without TLS, for a super user."""
    admin: AdminClient
    folder: Path
    passwords: dict[str, str] = field(default_factory=dict)

    def add_user(self, name: str) -> str:
        """Create a SCRAM-SHA-512 user and return its name."""
        self.passwords[name] = secrets.token_urlsafe(24)
        self.set_password(name, self.passwords[name])
        return name

    def set_password(self, name: str, password: str) -> None:
        """Set the password that the broker expects; the user's own files keep theirs."""
        credential = UserScramCredentialUpsertion(
            name, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096), password.encode()
        )
        for future in self.admin.alter_user_scram_credentials([credential]).values():
            future.result(20)

    def properties(self, user: str, *, password: str | None = None, ca: str = "ca.pem") -> dict[str, str]:
        """Return the librdkafka properties with which `user` logs in."""
        return {
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": str(self.folder / ca),
            "sasl.mechanism": "PLAIN" if user in PLAIN_USERS else "SCRAM-SHA-512",
            "sasl.username": user,
            "sasl.password": password or self.passwords[user],
        }

    def config_file(self, user: str) -> Path:
        """Write the properties to a file, one per line, and return its path."""
        path = self.folder / f"{user}.properties"
        path.write_text("".join(f"{name} = {value}\n" for name, value in self.properties(user).items()))
        return path

    def connection(self, user: str, namespace: str = "") -> KafkaConnection:
        return KafkaConnection(self.servers, namespace, KafkaProperties(self.properties(user)))

    def allow(self, acls: Iterable[Acl]) -> None:
        """Grant permissions, and wait until the broker applies them."""
        bindings = list(dict.fromkeys(each for acl in acls for each in _bindings(acl)))
        for future in self.admin.create_acls(bindings).values():
            future.result(20)


def _bindings(acl: Acl) -> list[AclBinding]:
    pattern = ResourcePatternType.PREFIXED if acl.prefixed else ResourcePatternType.LITERAL
    return [
        AclBinding(
            RESOURCES[acl.resource], acl.name, pattern, f"User:{acl.principal}", "*", OPERATIONS[operation],
            AclPermissionType.ALLOW,
        )
        for operation in acl.operations
    ]  # fmt: skip


@contextmanager
def secured_kafka(folder: Path) -> Iterator[SecuredKafka]:
    """Run the broker with its files in `folder`."""
    port = choose_ports({"secured": 0})["secured"]
    passwords = {user: secrets.token_urlsafe(24) for user in PLAIN_USERS}
    for name in ("ca", "other-ca"):
        _write_certificate(folder / f"{name}.pem", folder / f"{name}-key.pem")
    plain = " ".join(f'user_{user}="{password}"' for user, password in passwords.items())
    settings = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "ca-key.pem"),
        "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": f"{LOGIN}.plain.PlainLoginModule required {plain};",
    }
    with own_kafka(folder, settings, secure_port=port) as address:
        kafka = SecuredKafka(
            f"{HOST}:{port}",
            address,
            AdminClient({"bootstrap.servers": address, "log_level": 2}),
            folder,
            passwords,
        )
        # The controller may not have its storage for credentials yet.
        Retrying(
            retry=retry_if_exception_type(KafkaException), wait=wait_fixed(0.2), stop=stop_after_delay(20)
        )(kafka.add_user, "probe")
        yield kafka


def _write_certificate(certificate: Path, key: Path) -> None:
    """Write a self-signed certificate of the loopback address, and a file with its key and itself."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, certificate.stem)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    certificate.write_bytes(pem)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + pem
    )

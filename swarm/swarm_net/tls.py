"""TLS 1.3 between peers: a self-signed certificate whose key is the peer's identity.

Owns the two contexts and reading the key out of the other end's certificate. No authority signs anything: the dialer
compares that key with the peer id that it wants (`handshake.py`), and TLS itself proves that the listener holds it.
Called by `direct.py`.
"""

import datetime
import os
import ssl
import tempfile
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from swarm_net.errors import Malformed
from swarm_net.identity import Identity

ALPN = "swarm/1"
_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "swarm")])
# RFC 5280, 4.1.2.5: a certificate without a well-defined end. Nobody looks at its dates; no clock takes part.
_NOT_BEFORE = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


class TlsContexts(NamedTuple):
    """What the two ends of a connection wrap it with."""

    listener: ssl.SSLContext
    dialer: ssl.SSLContext


def tls_contexts(identity: Identity) -> TlsContexts:
    """Return the contexts of a peer."""
    listener, dialer = _context(ssl.PROTOCOL_TLS_SERVER), _context(ssl.PROTOCOL_TLS_CLIENT)
    listener.num_tickets = 0  # connections are kept, not resumed
    _load(listener, _certificate(identity) + _private_key(identity))
    return TlsContexts(listener, dialer)


def key_of_certificate(certificate: bytes | None) -> bytes:
    """Return the raw Ed25519 key of a certificate in DER. Raises Malformed."""
    try:
        key = x509.load_der_x509_certificate(certificate or b"").public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Malformed(what="certificate", reason=str(error)) from error
    if not isinstance(key, Ed25519PublicKey):
        raise Malformed(what="certificate", reason="its key is not an Ed25519 key")
    return key.public_bytes_raw()


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN])
    return context


def _certificate(identity: Identity) -> bytes:
    builder = x509.CertificateBuilder().subject_name(_NAME).issuer_name(_NAME).serial_number(1)
    builder = builder.not_valid_before(_NOT_BEFORE).not_valid_after(_NOT_AFTER)
    certificate = builder.public_key(identity.key.public_key()).sign(identity.key, None)
    return certificate.public_bytes(Encoding.PEM)


def _private_key(identity: Identity) -> bytes:
    return identity.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """Give a context its certificate and key. OpenSSL reads them from a file alone: one in memory, where there is such
    a thing, so that the key never stands on a disk a second time."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("tls", os.MFD_CLOEXEC), "wb") as stream:
            stream.write(pem)
            stream.flush()
            context.load_cert_chain(f"/proc/self/fd/{stream.fileno()}")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tls.pem")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(pem)
        context.load_cert_chain(path)

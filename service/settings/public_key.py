"""Public keys, and the algorithms that may be used with each. Imports `cryptography`."""

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

# RFC 7518 and RFC 8037, by the name of the curve in `cryptography`.
OF_CURVES = {"secp256r1": ("ES256",), "secp384r1": ("ES384",), "secp521r1": ("ES512",)}
OF_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
OF_EDWARDS = ("EdDSA",)
ALGORITHMS = (*OF_RSA, *(name for names in OF_CURVES.values() for name in names), *OF_EDWARDS)
# RFC 7518, section 3.3.
MIN_RSA_BITS = 2048


def algorithms_of(key: object) -> tuple[str, ...]:
    """The algorithms that verify signatures with a key. None for anything but a public key."""
    match key:
        case RSAPublicKey():
            return OF_RSA if key.key_size >= MIN_RSA_BITS else ()
        case EllipticCurvePublicKey():
            return OF_CURVES.get(key.curve.name, ())
        case Ed25519PublicKey() | Ed448PublicKey():
            return OF_EDWARDS
    return ()


def load_pem(pem: str) -> object:
    """The public key of a PEM, which may be a certificate. ValueError completes a sentence."""
    try:
        if "-----BEGIN CERTIFICATE-----" in pem:
            key: object = x509.load_pem_x509_certificate(pem.encode()).public_key()
        else:
            key = load_pem_public_key(pem.encode())
    except Exception as error:
        # Its errors are of many kinds, and some say much.
        raise ValueError("is no public key in PEM") from error
    if not algorithms_of(key):
        raise ValueError(
            f"is a key that can't be used; use RSA with {MIN_RSA_BITS} bits or more, P-256, P-384,"
            " P-521, Ed25519 or Ed448"
        )
    return key

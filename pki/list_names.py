"""What the file of a revocation list is called: where it is published, in what points to it, and for who fetches it."""

from __future__ import annotations

import re

from cryptography import x509

# Of a complete list: the key ID of the CA, and the shard.
LIST_FILE = re.compile(r"([0-9a-f]{40})(?:-([1-9][0-9]{0,8}))?\.crl", re.ASCII)


def crl_file_name(key_id: str, shard: int = 0, *, delta: bool = False) -> str:
    """The last part of the URL of a revocation list: `KEYID.crl`, `KEYID-7.crl`, `KEYID-7.delta.crl`."""
    return f"{key_id}{f'-{shard}' if shard else ''}{'.delta' if delta else ''}.crl"


def crl_name(crl: x509.CertificateRevocationList) -> str:
    """The file name of a list that was made here, by what stands in it."""
    issuer = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    delta = any(extension.oid == x509.DeltaCRLIndicator.oid for extension in crl.extensions)
    try:
        scope = crl.extensions.get_extension_for_class(x509.IssuingDistributionPoint).value
    except x509.ExtensionNotFound:
        return crl_file_name((issuer.key_identifier or b"").hex(), delta=delta)
    (url,) = list(scope.full_name or ())
    name = str(url.value).rsplit("/", 1)[1]
    return f"{name.removesuffix('.crl')}.delta.crl" if delta else name

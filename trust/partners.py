"""Another trust domain as a partner: how its bundle is had, what may follow what, and what is kept on disk.

Nothing here asks an endpoint; that is `trust.federation`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import httpx
from cryptography.hazmat.primitives.serialization import Encoding

from trust import json_text
from trust.bundles import MAX_BUNDLE_BYTES, MAX_BUNDLE_DEPTH, TrustBundle
from trust.clock import utc
from trust.credentials import read_bounded, write_atomically
from trust.errors import BundleError, ConfigurationError, TrustError
from trust.identity import AgentID, trust_domain

MAX_CACHE_BYTES = 2 * MAX_BUNDLE_BYTES  # a document may be longer when it is written anew

Profile = Literal["https_web", "https_spiffe"]

logger = logging.getLogger("a2a_trust.federation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Partner:
    """Another trust domain, and how its bundle is had. All of it is configuration (SPIFFE Federation, section 5.1).

    Args:
        trust_domain: whose bundle it is; the document does not say.
        url: of the bundle endpoint, https.
        profile: "https_web": the endpoint has a certificate of the web's PKI for the host of the URL. "https_spiffe":
            it has an X509-SVID for `endpoint_id`.
        endpoint_id: (https_spiffe) the SPIFFE ID of the endpoint. It is verified with the bundle known last of *its*
            trust domain: this one, or another that is configured.
        bundle: what is trusted before anything was fetched. Required for https_spiffe where the endpoint is in the
            very domain it serves. Another value than at the last start replaces what was fetched since then.
        ca_file: (https_web) PEM roots to trust instead of the public ones.

    Raises:
        ConfigurationError, IdentityError: a part is missing, malformed or of the other profile.
    """

    trust_domain: str
    url: str
    profile: Profile
    endpoint_id: AgentID | None = None
    bundle: TrustBundle | None = field(default=None, repr=False)
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        trust_domain(self.trust_domain)
        what = f"bundle endpoint of {self.trust_domain}"
        try:
            url = httpx.URL(self.url)
            host = url.host
        except (httpx.InvalidURL, TypeError, ValueError):  # ValueError: an xn-- label that is no IDN
            raise ConfigurationError(what, got=self.url, expected="an https URL") from None
        if url.scheme != "https" or not host or url.userinfo or url.fragment:
            raise ConfigurationError(what, got=self.url, expected="an https URL without user or fragment")
        if self.profile not in ("https_web", "https_spiffe"):
            raise ConfigurationError(what, got=self.profile, expected="https_web or https_spiffe")
        if self.bundle is not None and self.bundle.trust_domain != self.trust_domain:
            raise ConfigurationError(what, got=f"the bundle of {self.bundle.trust_domain}", expected="its own")
        if self.profile == "https_web":
            if self.endpoint_id is not None:
                raise ConfigurationError(what, got="endpoint_id", expected="none with https_web")
        elif self.endpoint_id is None:
            raise ConfigurationError(what, expected="endpoint_id with https_spiffe")
        elif self.ca_file is not None:
            raise ConfigurationError(what, got="ca_file", expected="none with https_spiffe")
        elif self.endpoint_id.trust_domain == self.trust_domain and self.bundle is None:
            raise ConfigurationError(what, expected="bundle: what its endpoint is verified with at first")

    def fingerprint(self) -> str:
        """Of the configuration: what was fetched under another one does not count."""
        roots = _roots(self.bundle) if self.bundle else frozenset()
        facts = [self.trust_domain, self.url, self.profile, str(self.endpoint_id), str(self.ca_file)]
        facts += [str(self.bundle.sequence) if self.bundle else "", *sorted(root.hex() for root in roots)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def web_trust(self) -> ssl.SSLContext:
        """The roots that an https_web endpoint is verified with; the name in the URL is checked as well.

        Raises:
            ConfigurationError: `ca_file` cannot be read.
        """
        if self.ca_file is None:
            return httpx.create_ssl_context(trust_env=False)
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise ConfigurationError(
                f"ca_file of {self.trust_domain}", got=f"{self.ca_file}: {error.strerror}", expected="PEM certificates"
            ) from None


def successor(known: TrustBundle | None, offered: TrustBundle) -> TrustBundle:
    """The bundle to use after `offered` came from the domain's endpoint: `known` itself where nothing has changed.

    A document without a sequence counts as 0. While there is none, the latest document is up to date (SPIFFE
    Federation, section 4.2); once there was one, nobody can go back, be it to an older bundle or to none.

    Raises:
        BundleError: the sequence is lower, or the same with other roots.
    """
    if known is None:
        return offered
    if offered.sequence < known.sequence:
        raise BundleError(
            "sequence of the trust bundle went back", got=offered.sequence, expected=f"at least {known.sequence}"
        )
    same = _roots(known) == _roots(offered)
    if offered.sequence == known.sequence and not same and known.sequence:
        raise BundleError(
            "trust bundle has other roots", got=f"sequence {offered.sequence} as before", expected="a higher sequence"
        )
    return known if same and offered.sequence == known.sequence else offered


class BundleCache:
    """What was fetched, in a folder (made 0700) with one file a domain. Whoever can write there decides whom we trust.

    What was fetched under another configuration of the partner does not count: a fresh bundle that the operator
    configures replaces what is here, whatever its sequence.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, partner: Partner) -> tuple[TrustBundle, datetime] | None:
        """The bundle that was fetched last, and when; None where there is none that counts."""
        path = self._path(partner)
        if not path.exists():
            return None
        try:
            return self._read(path, partner)
        except _OtherConfiguration:
            logger.warning("%s is of another configuration of %s, and is not used", path, partner.trust_domain)
        except (TrustError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be read (%s), and is not used", path, type(error).__name__)
        return None

    def write(self, partner: Partner, bundle: TrustBundle, now: datetime) -> None:
        """Keep a bundle, unless a later one is there: another process may be faster.

        Raises:
            TrustError, OSError: it cannot be written.
        """
        path = self._path(partner)
        with suppress(_OtherConfiguration, TrustError, ValueError, KeyError, TypeError):
            if self._read(path, partner)[0].sequence > bundle.sequence:
                return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = {"configured": partner.fingerprint(), "fetched": now.isoformat(), "bundle": bundle.to_document()}
        write_atomically(path, json_text.write(kept), mode=0o600)

    def _path(self, partner: Partner) -> Path:
        return self._folder / f"{partner.trust_domain}.json"

    def _read(self, path: Path, partner: Partner) -> tuple[TrustBundle, datetime]:
        text = read_bounded(path, MAX_CACHE_BYTES)
        kept = json_text.parse(text, max_bytes=MAX_CACHE_BYTES, max_depth=MAX_BUNDLE_DEPTH + 1)
        if kept["configured"] != partner.fingerprint():
            raise _OtherConfiguration
        bundle = TrustBundle.from_document(kept["bundle"], partner.trust_domain)
        return bundle, utc(datetime.fromisoformat(kept["fetched"]))


class _OtherConfiguration(Exception):
    """What is in the cache was fetched for a partner that was configured otherwise."""


def _roots(bundle: TrustBundle) -> frozenset[bytes]:
    return frozenset(root.public_bytes(Encoding.DER) for root in bundle.roots)

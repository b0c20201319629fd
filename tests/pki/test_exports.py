import pki


def test_the_face_is_pinned() -> None:
    assert pki.__all__ == [
        "CertificateAuthority",
        "EnrolmentToken",
        "HealthCheck",
        "Issued",
        "IssuerRecord",
        "PKIError",
        "Record",
        "RenewalInfo",
        "Settings",
        "State",
        "Step",
        "TokenRecord",
    ]
    assert pki.__all__ == sorted(pki.__all__)
    assert all(hasattr(pki, name) for name in pki.__all__)

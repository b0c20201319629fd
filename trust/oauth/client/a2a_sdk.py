"""Our tokens for a2a-sdk's own way to authenticate calls, of whatever transport: `AuthInterceptor`.

Over HTTP `trust.agent_client(tokens=...)` does more: it also asks for a new token where one was refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trust.errors import ConfigurationError
from trust.oauth.client.source import BearerAuth

if TYPE_CHECKING:
    from a2a.client import ClientCallContext, ClientCallInterceptor
    from a2a.client.interceptors import AfterArgs, BeforeArgs


def interceptor_for_a2a(tokens: BearerAuth) -> ClientCallInterceptor:
    """What a2a-sdk takes among the `interceptors=` of a client, in place of its own `AuthInterceptor`.

    That one sends a credential to whatever URL a card names, in whatever header the card wants, and leaves it in the
    context of the call, which may be used for a call to another agent. Here a call to an agent whose card names any
    interface at an origin that is not one of `tokens` is refused before a token is asked for; only the OAuth2 schemes
    of the card get one, as a bearer token; and the caller's context stays as it was.

    Not done: a token that is refused is not replaced, for an interceptor does not see that; and a card that requires no
    OAuth2 gets no token.

    Args:
        tokens: a `TokenSource`, its `on_behalf_of` or its `for_task`.

    Raises:
        ConfigurationError: a2a-sdk is not installed; or each use of a token takes a proof (DPoP), which is made of the
            request that no interceptor sees.

    Raises (from the SDK's calls):
        OriginRefused: an interface of the card is elsewhere.
        TokenRequestError: no token can be had.
    """
    if tokens.authority.proof_key is not None:
        raise ConfigurationError("interceptor for tokens with proofs", do="use agent_client(tokens=...)")
    try:
        from a2a.client import AuthInterceptor, ClientCallContext, ClientCallInterceptor, CredentialService
    except ImportError:
        raise ConfigurationError("interceptor for a2a-sdk", do="pip install 'a2a-trust[a2a]'") from None

    class Credentials(CredentialService):
        def __init__(self, schemes: frozenset[str]) -> None:
            self._schemes = schemes

        async def get_credentials(self, security_scheme_name: str, context: ClientCallContext | None) -> str | None:
            return (await tokens.token()).value if security_scheme_name in self._schemes else None

    class Interceptor(ClientCallInterceptor):
        async def before(self, args: BeforeArgs) -> None:
            card = args.agent_card
            for interface in card.supported_interfaces:
                tokens.check_origin(interface.url)
            schemes = (name for name, kind in card.security_schemes.items() if kind.HasField("oauth2_security_scheme"))
            context = ClientCallContext() if args.context is None else args.context
            parameters = {**(context.service_parameters or {})}
            args.context = context.model_copy(update={"service_parameters": parameters})
            await AuthInterceptor(Credentials(frozenset(schemes))).before(args)

        async def after(self, args: AfterArgs) -> None:
            return

    return Interceptor()

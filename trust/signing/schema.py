"""What A2A 1.0 (a2a.proto) says about the objects that are signed inside JSON: Agent Cards and messages.

The tests compare these tables with the descriptors of the SDK: a field that a newer A2A adds must be added here. Until
then it is refused in a message, and reported as uncovered in a card.
"""

from __future__ import annotations

from collections.abc import Mapping

# The name of a kind of object, its members by their names in JSON, and the kind of each. `!` is REQUIRED; `?` keeps the
# default where it is written (the keyword `optional`, or one of several alternatives); `[]` is repeated, `{}` a map
# from strings. What is not a kind of this table or of ENUMERATIONS is protobuf's own.
SCHEMA: Mapping[str, Mapping[str, str]] = {
    "Message": {
        "messageId": "string!",
        "contextId": "string",
        "taskId": "string",
        "role": "Role!",
        "parts": "Part[]!",
        "metadata": "Struct",
        "extensions": "string[]",
        "referenceTaskIds": "string[]",
    },
    "Part": {
        "text": "string?",
        "raw": "bytes?",
        "url": "string?",
        "data": "Value",
        "metadata": "Struct",
        "filename": "string",
        "mediaType": "string",
    },
    "Artifact": {
        "artifactId": "string!",
        "name": "string",
        "description": "string",
        "parts": "Part[]!",
        "metadata": "Struct",
        "extensions": "string[]",
    },
    "Task": {
        "id": "string!",
        "contextId": "string",
        "status": "TaskStatus!",
        "artifacts": "Artifact[]",
        "history": "Message[]",
        "metadata": "Struct",
    },
    "TaskStatus": {"state": "TaskState!", "message": "Message", "timestamp": "Timestamp"},
    "TaskStatusUpdateEvent": {
        "taskId": "string!",
        "contextId": "string!",
        "status": "TaskStatus!",
        "metadata": "Struct",
    },
    "TaskArtifactUpdateEvent": {
        "taskId": "string!",
        "contextId": "string!",
        "artifact": "Artifact!",
        "append": "bool",
        "lastChunk": "bool",
        "metadata": "Struct",
    },
    "AgentCard": {
        "name": "string!",
        "description": "string!",
        "supportedInterfaces": "AgentInterface[]!",
        "provider": "AgentProvider",
        "version": "string!",
        "documentationUrl": "string?",
        "capabilities": "AgentCapabilities!",
        "securitySchemes": "SecurityScheme{}",
        "securityRequirements": "SecurityRequirement[]",
        "defaultInputModes": "string[]!",
        "defaultOutputModes": "string[]!",
        "skills": "AgentSkill[]!",
        "iconUrl": "string?",
    },
    "AgentInterface": {
        "url": "string!",
        "protocolBinding": "string!",
        "tenant": "string",
        "protocolVersion": "string!",
    },
    "AgentProvider": {"url": "string!", "organization": "string!"},
    "AgentCapabilities": {
        "streaming": "bool?",
        "pushNotifications": "bool?",
        "extensions": "AgentExtension[]",
        "extendedAgentCard": "bool?",
    },
    "AgentExtension": {"uri": "string", "description": "string", "required": "bool", "params": "Struct"},
    "AgentSkill": {
        "id": "string!",
        "name": "string!",
        "description": "string!",
        "tags": "string[]!",
        "examples": "string[]",
        "inputModes": "string[]",
        "outputModes": "string[]",
        "securityRequirements": "SecurityRequirement[]",
    },
    "SecurityRequirement": {"schemes": "StringList{}"},
    "StringList": {"list": "string[]"},
    "SecurityScheme": {
        "apiKeySecurityScheme": "APIKeySecurityScheme",
        "httpAuthSecurityScheme": "HTTPAuthSecurityScheme",
        "oauth2SecurityScheme": "OAuth2SecurityScheme",
        "openIdConnectSecurityScheme": "OpenIdConnectSecurityScheme",
        "mtlsSecurityScheme": "MutualTlsSecurityScheme",
    },
    "APIKeySecurityScheme": {"description": "string", "location": "string!", "name": "string!"},
    "HTTPAuthSecurityScheme": {"description": "string", "scheme": "string!", "bearerFormat": "string"},
    "OAuth2SecurityScheme": {"description": "string", "flows": "OAuthFlows!", "oauth2MetadataUrl": "string"},
    "OpenIdConnectSecurityScheme": {"description": "string", "openIdConnectUrl": "string!"},
    "MutualTlsSecurityScheme": {"description": "string"},
    "OAuthFlows": {
        "authorizationCode": "AuthorizationCodeOAuthFlow",
        "clientCredentials": "ClientCredentialsOAuthFlow",
        "implicit": "ImplicitOAuthFlow",
        "password": "PasswordOAuthFlow",
        "deviceCode": "DeviceCodeOAuthFlow",
    },
    "AuthorizationCodeOAuthFlow": {
        "authorizationUrl": "string!",
        "tokenUrl": "string!",
        "refreshUrl": "string",
        "scopes": "string{}!",
        "pkceRequired": "bool",
    },
    "ClientCredentialsOAuthFlow": {"tokenUrl": "string!", "refreshUrl": "string", "scopes": "string{}!"},
    "ImplicitOAuthFlow": {"authorizationUrl": "string", "refreshUrl": "string", "scopes": "string{}"},
    "PasswordOAuthFlow": {"tokenUrl": "string", "refreshUrl": "string", "scopes": "string{}"},
    "DeviceCodeOAuthFlow": {
        "deviceAuthorizationUrl": "string!",
        "tokenUrl": "string!",
        "refreshUrl": "string",
        "scopes": "string{}!",
    },
}

# The members of which there is at most one.
ONE_OF: Mapping[str, frozenset[str]] = {
    "Part": frozenset({"text", "raw", "url", "data"}),
    "SecurityScheme": frozenset(SCHEMA["SecurityScheme"]),
    "OAuthFlows": frozenset(SCHEMA["OAuthFlows"]),
}

# The names, of which the first is the default.
ENUMERATIONS: Mapping[str, tuple[str, ...]] = {
    "Role": ("ROLE_UNSPECIFIED", "ROLE_USER", "ROLE_AGENT"),
    "TaskState": (
        "TASK_STATE_UNSPECIFIED",
        "TASK_STATE_SUBMITTED",
        "TASK_STATE_WORKING",
        "TASK_STATE_COMPLETED",
        "TASK_STATE_FAILED",
        "TASK_STATE_CANCELED",
        "TASK_STATE_INPUT_REQUIRED",
        "TASK_STATE_REJECTED",
        "TASK_STATE_AUTH_REQUIRED",
    ),
}

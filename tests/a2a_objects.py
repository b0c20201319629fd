"""A2A objects: one full example of each kind, and all that hypothesis can think of."""

from __future__ import annotations

from base64 import b64encode, urlsafe_b64encode
from datetime import datetime
from typing import Any

from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
# What survives JavaScript, which writes whole numbers below 1e21 in digits.
NUMBERS = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda number: abs(number) < 2**53 or abs(number) >= 1e21
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
METADATA = st.dictionaries(TEXT, VALUES, max_size=3)
TEXTS = st.lists(TEXT, max_size=2)
TIMES = st.builds(
    lambda moment, fraction, zone: f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}{zone}",
    st.datetimes(min_value=datetime(1900, 1, 1)),
    st.sampled_from(["", ".5", ".120", ".1234", ".123456789", ".000"]),
    st.sampled_from(["Z", "+02:00", "-11:30", "+00:00"]),
).filter(lambda text: not text.startswith("9999-12-31"))
BASE64 = st.binary(max_size=8).flatmap(
    lambda data: st.sampled_from(
        [
            b64encode(data).decode(),
            urlsafe_b64encode(data).decode(),
            urlsafe_b64encode(data).decode().rstrip("="),
        ]
    )
)


def some(required: dict[str, st.SearchStrategy[Any]], **optional: st.SearchStrategy[Any]) -> Any:
    return st.fixed_dictionaries(required, optional=optional)


PARTS = st.lists(
    st.one_of(
        *(
            some({name: value}, metadata=METADATA, filename=TEXT, mediaType=TEXT)
            for name, value in {
                "text": TEXT,
                "raw": BASE64,
                "url": TEXT,
                "data": VALUES.filter(lambda v: v is not None),
            }.items()
        )
    ),
    max_size=2,
)
MESSAGES = some(
    {"messageId": TEXT, "parts": PARTS},
    contextId=TEXT,
    taskId=TEXT,
    role=st.sampled_from(["ROLE_UNSPECIFIED", "ROLE_USER", "ROLE_AGENT"]),
    metadata=METADATA | st.none(),
    extensions=TEXTS,
    referenceTaskIds=TEXTS,
)
ARTIFACTS = some({"artifactId": TEXT, "parts": PARTS}, name=TEXT, description=TEXT, metadata=METADATA, extensions=TEXTS)
STATUS = some(
    {"state": st.sampled_from(["TASK_STATE_UNSPECIFIED", "TASK_STATE_WORKING", "TASK_STATE_AUTH_REQUIRED"])},
    message=MESSAGES,
    timestamp=TIMES,
)
OBJECTS: dict[str, st.SearchStrategy[Any]] = {
    "Message": MESSAGES,
    "Artifact": ARTIFACTS,
    "Task": some(
        {"id": TEXT, "status": STATUS},
        contextId=TEXT,
        artifacts=st.lists(ARTIFACTS, max_size=1),
        history=st.lists(MESSAGES, max_size=1),
        metadata=METADATA,
    ),
    "TaskStatusUpdateEvent": some({"taskId": TEXT, "status": STATUS}, contextId=TEXT, metadata=METADATA),
    "TaskArtifactUpdateEvent": some(
        {"taskId": TEXT, "artifact": ARTIFACTS},
        contextId=TEXT,
        append=st.booleans(),
        lastChunk=st.booleans(),
        metadata=METADATA,
    ),
}

MESSAGE: dict[str, Any] = {
    "messageId": "m-1",
    "contextId": "",
    "role": "ROLE_USER",
    "parts": [
        {"text": "pay 5 €", "metadata": {}},
        {"text": ""},
        {"raw": "-_8", "filename": "a.bin", "mediaType": "application/octet-stream"},
        {"data": {"amount": 5, "exact": 5.0, "small": 1e-7, "none": None, "list": [], "\u20ac": "\U0001f600"}},
    ],
    "metadata": {"tenant": 1, "nested": {"deep": [True, -0.0, 1e21]}},
    "extensions": ["urn:x"],
}
STATUS_1 = {"state": "TASK_STATE_WORKING", "timestamp": "2026-11-22T01:02:03.120400+02:00", "message": MESSAGE}
ARTIFACT: dict[str, Any] = {"artifactId": "a-1", "name": "", "parts": [{"url": "https://x.example/"}, {"data": 0}]}
EXAMPLES: dict[str, dict[str, Any]] = {
    "Message": MESSAGE,
    "Artifact": ARTIFACT,
    "Task": {"id": "t-1", "status": STATUS_1, "artifacts": [ARTIFACT], "history": [MESSAGE], "metadata": {}},
    "TaskStatusUpdateEvent": {"taskId": "t-1", "contextId": "c", "status": STATUS_1},
    "TaskArtifactUpdateEvent": {"taskId": "t-1", "artifact": ARTIFACT, "append": False, "lastChunk": True},
}

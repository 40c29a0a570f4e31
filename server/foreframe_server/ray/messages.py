"""What crosses between the app and a replica, as schemas. Knows no engine, no Ray and no bytes.

Times are seconds from now, as clocks of two machines have nothing in common.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from foreframe_engines import NoisePlan, OnDeadline, Priority, Reducer, Strategy
from foreframe_server.errors import Reason
from foreframe_server.processes.messages import (
    Arrays,
    DetokenizeCall,
    Failure,
    Hello,
    Index,
    Known,
    Number,
    ReadCall,
    Scores,
    Sent,
    Time,
    TokenizeCall,
)

Name: TypeAlias = Annotated[str, Field(max_length=4096)]
Count: TypeAlias = Annotated[int, Field(ge=0, le=2**31)]


class _Message(BaseModel):
    # Not strict: enumerations cross as their values.
    model_config = ConfigDict(frozen=True, extra="forbid")


class Ask(_Message):
    """Asks how a model stands; one that is not open is opened."""

    kind: Literal["ask"] = "ask"


class JobCall(_Message):
    """Asks for an ensemble's members from `first_member` on, those of a share.

    is_told: whether members are to be told as they become whole. received_s: how long ago it was asked.
    """

    kind: Literal["job"] = "job"
    job: Name
    model: Name
    context: Index
    states: Index
    context_latents: Index | None
    frame_indices: tuple[Count, ...]
    strategy: Strategy
    steps: Count
    seed: Number
    guidance: Time
    size: Count
    reducer: Reducer
    noise: NoisePlan
    tolerance: Time | None
    priority: Priority
    stream_id: Name | None
    request_id: Name
    key: Name
    tenant: Name
    received_s: Time
    left_s: Time | None
    on_deadline: OnDeadline
    first_member: Count
    share_index: Count
    share_count: Annotated[int, Field(ge=1)]
    is_told: bool
    wants_estimate: bool


class Extend(_Message):
    """Lets a job live longer."""

    kind: Literal["extend"] = "extend"
    job: Name
    left_s: Time | None
    on_deadline: OnDeadline


class Grow(_Message):
    """Asks for more members of a job."""

    kind: Literal["grow"] = "grow"
    job: Name
    size: Count


class Glance(_Message):
    """Asks where a job's first member is heading."""

    kind: Literal["glance"] = "glance"
    job: Name


class ContextCall(_Message):
    """Asks to encode a context."""

    kind: Literal["context"] = "context"
    context: Index
    left_s: Time | None


class Cost(_Message):
    """What a kind of work takes, with its rows."""

    work: Literal["prepare", "frame", "step"]
    rows: Count
    seconds: Time


class Standing(_Message):
    """Says how a model stands on a replica. `hello` is None until it is open; `failure` says why it never will be."""

    kind: Literal["standing"] = "standing"
    replica: Name
    is_ready: bool = False
    pending_s: Time = 0.0
    determinism: str = ""
    costs: tuple[Cost, ...] = ()
    hello: Hello | None = None
    failure: Failure | None = None


class Estimate(_Message):
    """Tells frames of where the first member is heading."""

    kind: Literal["estimate"] = "estimate"
    frames: Index


class Members(_Message):
    """Tells the next whole members, of so many steps each."""

    kind: Literal["members"] = "members"
    frames: tuple[Index, ...]
    steps: Count


class Result(_Message):
    """Answers a job: the members that were not told before, and the latents of all. Timings are milliseconds."""

    kind: Literal["result"] = "result"
    members: tuple[Index, ...]
    latents: tuple[Index, ...]
    steps: Count
    is_estimate: bool
    timings: dict[str, Time]


class Nothing(_Message):
    """Answers that there is nothing to tell."""

    kind: Literal["nothing"] = "nothing"


class Refusal(_Message):
    """Answers with a refusal, as its class is called."""

    kind: Literal["refusal"] = "refusal"
    error: Name
    detail: str
    reasons: tuple[Reason, ...]
    retry_after_ms: int | None


class Lost(_Message):
    """Answers that an engine died, or that this is not the replica that was meant."""

    kind: Literal["lost"] = "lost"
    message: str
    has_run: bool


Control: TypeAlias = Extend | Grow | Glance
EngineCall: TypeAlias = TokenizeCall | DetokenizeCall | ReadCall
Event: TypeAlias = Estimate | Members | Result | Nothing | Refusal | Lost
Body: TypeAlias = Ask | JobCall | Control | ContextCall | EngineCall | Standing | Event | Arrays | Scores | Failure


class Envelope(_Message):
    """One message for or of one model: its arrays, whose bytes follow in order, and which need not be known longer.

    link: whose arrays are known by number; every link has its own.
    """

    model: Name
    link: Name = ""
    arrays: tuple[Annotated[Sent | Known, Field(discriminator="place")], ...] = ()
    forget: tuple[Number, ...] = ()
    body: Annotated[Body, Field(discriminator="kind")]

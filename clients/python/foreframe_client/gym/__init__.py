"""A served world model as gymnasium environments. Needs the extra `gym`, which the rest of the client does not."""

try:
    from foreframe_client.gym.actions import Actions, absolute, relative
    from foreframe_client.gym.env import RemoteWorldEnv
    from foreframe_client.gym.registration import register
    from foreframe_client.gym.task import Start, Task
    from foreframe_client.gym.vector_env import RemoteWorldVectorEnv
except ModuleNotFoundError as missing:
    if missing.name is None or missing.name.partition(".")[0] != "gymnasium":
        raise
    words = "foreframe_client.gym needs gymnasium: pip install 'foreframe-client[gym]'"
    raise ModuleNotFoundError(words, name="gymnasium") from missing

__all__ = [
    "Actions",
    "RemoteWorldEnv",
    "RemoteWorldVectorEnv",
    "Start",
    "Task",
    "absolute",
    "register",
    "relative",
]

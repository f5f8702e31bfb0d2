"""The errors this package raises.

    PipelineError
     ├─ SettingsError            a wrong setting; stops the start
     ├─ StackError               a local server could not be started or kept
     ├─ ReplacedError            another process works under this worker's name
     ├─ TopicError               topics that are missing or do not fit each other
     ├─ ModelRepositoryError     a model folder that no server should see
     ├─ PromotionError           a version that cannot become the default
     ├─ InferenceServerError     what a Triton answered, or did not
     │   ├─ ServerUnavailable    no answer: another instance may have one
     │   ├─ ModelNotReady        the server does not serve that model or version (any more)
     │   ├─ InvalidTensor        the server refused the tensors; never retried as they are
     │   └─ ModelFailed          the model itself failed
     ├─ EventStoreError          ClickHouse refused or did not answer
     ├─ ResultStoreError         the store of results refused or did not answer
     └─ InferenceFailed          what `Client.infer` raises for an answer that did not succeed

`schemas.errors.WireError` is the error of a request that cannot be served; its `code` is the code on the wire.
"""

from schemas.errors import ErrorCode


class PipelineError(Exception):
    """The root of this package's errors."""


class SettingsError(PipelineError):
    """A wrong setting: the message names it in one line."""


class StackError(PipelineError):
    """A local server could not be started or kept running."""


class TopicError(PipelineError):
    """Topics that are missing, or do not fit each other."""


class ReplacedError(PipelineError):
    """Another process joined the group under this worker's instance id while this one was alive."""


class ModelRepositoryError(PipelineError):
    """A model folder that no server should see.

    Args:
        path: the folder or file at fault.
        reason: what is wrong and what was expected.
    """

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class PromotionError(PipelineError):
    """A version that cannot become the default, or be tried; the message says why, and what is served."""


class InferenceServerError(PipelineError):
    """What an inference server answered instead of tensors.

    Args:
        instance: the name of the instance that was asked.
        reason: what it said.
    """

    def __init__(self, instance: str, reason: str) -> None:
        super().__init__(f"{instance}: {reason}")
        self.instance = instance
        self.reason = reason


class ServerUnavailable(InferenceServerError):  # noqa: N818 - a state, not a mistake
    """No answer from this instance; another one may have it. Safe to retry."""


class ModelNotReady(InferenceServerError):  # noqa: N818 - a state, not a mistake
    """The instance does not serve that model or version (any more)."""


class InvalidTensor(InferenceServerError):  # noqa: N818 - named for what was refused
    """The server refused the tensors as they are. Never retried."""


class ModelFailed(InferenceServerError):  # noqa: N818 - a state, not a mistake
    """The model itself failed on these tensors."""


class EventStoreError(PipelineError):
    """ClickHouse refused or did not answer.

    Args:
        message: what happened.
        retryable: whether the same insert can succeed later.
    """

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class ResultStoreError(PipelineError):
    """The store of results refused or did not answer; the results topic and the log have all there is."""


class InferenceFailed(PipelineError):  # noqa: N818 - a state, not a mistake
    """An answer that did not succeed.

    Args:
        request_id: whose answer it is.
        code: the wire's error code.
        message: the wire's sentence.
    """

    def __init__(self, request_id: str, code: ErrorCode, message: str) -> None:
        super().__init__(f"{code}: {message} (request {request_id})")
        self.request_id = request_id
        self.code = code
        self.message = message

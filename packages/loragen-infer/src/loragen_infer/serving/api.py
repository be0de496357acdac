"""What a request for an adapter may hold, and how LitServe has adapters made of a batch of requests."""

import logging
import threading
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi.responses import JSONResponse
from litserve import LitAPI
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model, field_validator

from loragen_infer.encoder.base import check_prompts
from loragen_infer.errors import LoragenInferError, is_out_of_memory, is_out_of_space, reason_of
from loragen_infer.serving.config import ServeConfig
from loragen_infer.store import AdapterStore, StoredAdapter
from loragen_infer.vllm.client import VllmClient, VllmError

__all__ = ["AdapterMade", "make_api", "status_of"]

logger = logging.getLogger(__name__)

Answer = StoredAdapter | LoragenInferError


class AdapterMade(BaseModel):
    """An adapter that is there."""

    id: str = Field(description="What GET /adapters/{id} takes.")
    fingerprint: str = Field(description="Fingerprint of prompts, generator and scale; it is the id.")
    path: str = Field(description="The PEFT folder on the machine of the server.")
    is_new: bool = Field(description="Whether this request made it.")
    seconds: float = Field(description="What it took.")


class _Prompts(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    prompts: list[str]
    scale: float = Field(default=1.0, allow_inf_nan=False, description="Factor on the effect of the adapter.")

    @field_validator("prompts")
    @classmethod
    def _have_text(cls, prompts: list[str]) -> list[str]:
        try:
            check_prompts(prompts)
        except LoragenInferError as error:
            raise ValueError(str(error)) from error
        return prompts


def make_api(store: AdapterStore, config: ServeConfig, vllm: VllmClient | None = None) -> LitAPI:
    """Return the LitServe side of ``POST /adapters`` within the limits of ``config``; ``vllm`` loads what is made."""
    prompt = Annotated[str, StringConstraints(min_length=1, max_length=config.max_prompt_characters)]
    prompts = Annotated[list[prompt], Field(min_length=1, max_length=config.max_prompts, description="Of one task.")]
    request_model = create_model("AdapterRequest", __base__=_Prompts, prompts=(prompts, ...))

    class AdapterAPI(LitAPI):  # type: ignore[misc]  # LitServe ships no types
        def decode_request(self, request: request_model) -> Any:  # type: ignore[valid-type]
            return request

        def predict(self, x: Any, **_options: Any) -> Any:
            """Answers for a batch of requests: an adapter or an error each."""
            answers = _answers(store, x)
            return answers if vllm is None else _all_loaded(answers, vllm)

        def unbatch(self, output: Any) -> Any:
            return output

        def encode_response(self, output: Any) -> AdapterMade:
            if isinstance(output, LoragenInferError):
                # Raised, it would be the answer to the whole batch.
                return JSONResponse({"detail": str(output)}, status_of(output))  # type: ignore[return-value]
            return AdapterMade(
                id=output.id,
                fingerprint=output.id,
                path=str(output.path),
                is_new=output.is_new,
                seconds=output.seconds,
            )

    return AdapterAPI(max_batch_size=config.max_batch_size, batch_timeout=config.batch_timeout, api_path="/adapters")


def status_of(error: LoragenInferError) -> int:
    """Return 507 for a full disk, 503 for what else the system refuses, 502 for vLLM, 422 for what was asked for."""
    if isinstance(error, VllmError):
        return 502
    cause: BaseException | None = error
    while cause is not None:
        if is_out_of_space(cause):
            return 507
        # What is said here may quote a prompt, so the words are those of others only.
        if isinstance(cause, OSError) or (not isinstance(cause, LoragenInferError) and is_out_of_memory(cause)):
            return 503
        cause = cause.__cause__
    return 422


def _answers(store: AdapterStore, requests: list[Any]) -> list[Answer]:
    asked = [(request.prompts, request.scale) for request in requests]
    try:
        return [*_made(store, asked)]
    except LoragenInferError as error:
        logger.warning("%s", error)
        if len(asked) == 1:
            return [error]
    return [answer for request in requests for answer in _answers(store, [request])]


def _made(store: AdapterStore, asked: list[tuple[list[str], float]]) -> list[StoredAdapter]:
    """What is asked for; raises LoragenInferError also for what the machine has too little of, or refuses."""
    try:
        return store.get_or_create_many(asked)
    except Exception as error:
        if isinstance(error, LoragenInferError) or not (isinstance(error, OSError) or is_out_of_memory(error)):
            raise
        raise LoragenInferError(
            f"The adapter cannot be made now: {reason_of(error)}; send fewer prompts, or try again later."
        ) from error


def _all_loaded(answers: Sequence[Answer], vllm: VllmClient) -> list[Answer]:
    """The answers, once vLLM has their adapters, which it loads side by side."""
    unknown = VllmError(f"vLLM at {vllm.url} did not load the adapter; the server's log says why.")
    loaded: list[Answer] = [unknown] * len(answers)  # also where the thread of one ends with a traceback

    def load(place: int) -> None:
        loaded[place] = _loaded(answers[place], vllm)

    # A process may end while vLLM does not answer.
    threads = [threading.Thread(target=load, args=(place,), daemon=True) for place in range(len(answers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return loaded


def _loaded(answer: Answer, vllm: VllmClient) -> Answer:
    """The answer, once vLLM has the adapter; one that it does not take stays in the store."""
    if isinstance(answer, LoragenInferError):
        return answer
    try:
        vllm.load(answer)
    except LoragenInferError as error:
        logger.warning("%s", error)
        return error
    return answer

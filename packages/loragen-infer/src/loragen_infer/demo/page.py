"""The page: what is where on it, and which click does what."""

from collections.abc import Callable
from typing import Any

import gradio as gr
from hyperconv.errors import HyperConvError
from lora_tokenizer.errors import LoraTokenizerError

from loragen_infer.demo.workshop import KEPT_SECONDS, MAX_STRENGTH, Shown, Workshop, prompts_of
from loragen_infer.errors import LoragenInferError, is_out_of_memory, reason_of
from loragen_infer.words import counted

__all__ = ["CSS", "THEME", "build_page"]

_MAX_WAITING = 32
# Fonts of the machine, since others would be fetched from elsewhere.
THEME = gr.themes.Soft(
    primary_hue="blue",
    neutral_hue="slate",
    radius_size="md",
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"],
    font_mono=["ui-monospace", "Menlo", "DejaVu Sans Mono", "monospace"],
)
CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
.quiet { opacity: 0.75; font-size: 0.92em; }
#made { min-height: 1.6em; }
#near { --font-mono: var(--font); }
"""
_EXAMPLES = {
    "Opposites": (
        "What is the opposite of this word? Word: tall\nGive an antonym: early\nWrite a word that means the opposite "
        "of: to build",
        "What is the opposite of this word? Word: cheap",
    ),
    "Sums": (
        "What is 17 + 25?\nCalculate 3 + 88.\nAdd 40 and 12.",
        "What is 31 + 46?",
    ),
    "English to French": (
        "Translate this English word to French: dog\nWhat is the French word for house?\nEnglish: bread. French:",
        "Translate this English word to French: water",
    ),
    "Plurals": (
        "Write the plural of this noun: child\nWhat is the plural of box?\nSingular: city. Plural:",
        "Write the plural of this noun: mouse",
    ),
}
_MEANING = f"""
- **Similarity** is the cosine between the mean embedding of your prompts and that of a training task's prompts: 1 is
  the same direction, and unlike tasks lie near 0. Where no task is near, the generator extrapolates, and its adapter is
  worth less.
- **‖ΔW‖** is the Frobenius norm of what the adapter adds to a weight matrix, ΔW = scaling · B · A. Dark cells are where
  it changes the model most. A large norm is a strong change, not a good one.
- **Strength** multiplies ΔW everywhere: 0 is the base model, 1 what the generator wrote, {MAX_STRENGTH:g} twice that.
- **Answers** take the likeliest token each time, so that they differ by nothing but the adapter. One question is an
  impression; `loragen-infer evaluate` measures.
"""
_Made = tuple[tuple[str, ...], float]


def build_page(workshop: Workshop) -> gr.Blocks:
    """Return the page, ready to be launched."""
    with gr.Blocks(
        title="LoRA adapters from prompts", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        made = gr.State(None)
        gr.Markdown(_heading(workshop))
        with gr.Row():
            with gr.Column(scale=5):
                prompts = gr.Textbox(
                    label="Prompts of one task, one per line",
                    info="Questions as they would be asked. No answers are needed; a handful is enough.",
                    placeholder="What is 17 + 25?\nCalculate 3 + 88.",
                    lines=6,
                    max_lines=6,  # one that grows with its text takes the browser minutes for a long list
                    elem_id="prompts",
                )
                strength = gr.Slider(
                    label="Strength", minimum=0, maximum=MAX_STRENGTH, step=0.1, value=1, elem_id="strength"
                )
                with gr.Row():
                    generate = gr.Button("Make the adapter", variant="primary", elem_id="generate")
                    download = gr.DownloadButton("Download (zip)", interactive=False, elem_id="download")
                summary = gr.Markdown("", elem_id="made")
            with gr.Column(scale=6):
                question = gr.Textbox(label="Question", placeholder="What is 4 + 4?", lines=2, elem_id="question")
                ask = gr.Button("Ask both", elem_id="ask")
                with gr.Row():
                    base = gr.Textbox(label="Base model", lines=5, max_lines=10, interactive=False, elem_id="base")
                    adapted = gr.Textbox(
                        label="With the adapter", lines=5, max_lines=10, interactive=False, elem_id="adapted"
                    )
                status = gr.Markdown(workshop.status, elem_id="status", elem_classes="quiet")
        gr.Examples(
            [list(example) for example in _EXAMPLES.values()],
            [prompts, question],
            example_labels=list(_EXAMPLES),
            label="Examples",
        )
        with gr.Row():
            with gr.Column(scale=4):
                near = gr.Dataframe(
                    headers=["nearest training tasks", "similarity"],
                    datatype=["str", "number"],
                    column_widths=["70%", "30%"],
                    interactive=False,
                    buttons=[],
                    elem_id="near",
                )
                note = gr.Markdown("", elem_id="note", elem_classes="quiet")
            with gr.Column(scale=7):
                picture = gr.Image(
                    show_label=False,
                    interactive=False,
                    format="png",
                    buttons=[],
                    alt_text="Heat map of the norms of the weight changes by layer and module",
                    elem_id="picture",
                )
        with gr.Accordion("What the numbers mean", open=True):
            gr.Markdown(_MEANING)

        def make(text: str, factor: float) -> list[Any]:
            return _show(workshop.make(found := prompts_of(text or ""), factor), (found, factor))

        def remake(current: _Made | None, factor: float) -> list[Any]:
            if current is None:
                return [gr.skip()] * len(shown)
            return _show(workshop.make(current[0], factor), (current[0], factor))

        def answer(current: _Made | None, text: str) -> tuple[str, str]:
            if current is None:
                raise LoragenInferError("There is no adapter yet; write prompts and make one.")
            return workshop.ask(text or "", *current)

        def answer_again(current: _Made | None, text: str) -> tuple[str, str]:
            return answer(current, text) if current is not None and (text or "").strip() else ("", "")

        def look() -> tuple[str, gr.Timer]:
            return workshop.status, gr.Timer(active=not workshop.is_settled)

        shown = [made, summary, download, near, note, picture, base, adapted]
        making = {"outputs": shown, "concurrency_id": "generator", "show_progress_on": [summary]}
        answering = {"outputs": [base, adapted], "concurrency_id": "language model"}
        hidden = {"api_visibility": "private"}
        for event in (
            generate.click(_told(make), [prompts, strength], **making, **hidden),
            strength.release(_told(remake), [made, strength], trigger_mode="always_last", **making, **hidden),
        ):
            event.success(_told(answer_again), [made, question], **answering, **hidden)
        for trigger in (ask.click, question.submit):
            trigger(_told(answer), [made, question], **answering, **hidden)
        timer = gr.Timer(1)
        timer.tick(look, None, [status, timer], show_progress="hidden", queue=False, **hidden)
    page.queue(max_size=_MAX_WAITING, default_concurrency_limit=1)
    return page


def _heading(workshop: Workshop) -> str:
    bundle, number = workshop.bundle, workshop.tasks.num_tasks
    trained = "" if number is None else f", trained on {counted(number, 'task')}"
    return (
        "# LoRA adapters from prompts\n"
        f"A generator{trained} (`{bundle.fingerprint}`) writes an adapter for "
        f"`{bundle.base_model or 'an unknown base model'}` in one forward pass. It sees the prompts only."
    )


def _show(shown: Shown, made: _Made) -> list[Any]:
    """The values of what is shown of an adapter, in the order of the page's outputs; answers of another one go."""
    words = (
        f"Adapter **`{shown.id}`** from {counted(shown.num_prompts, 'prompt')}: {shown.num_parameters:,} parameters, "
        f"‖ΔW‖ {shown.total_norm:.3g} at strength {shown.strength:g}."
    )
    rows = [[name, round(similarity, 3)] for name, similarity in shown.near.rows]
    archive = gr.DownloadButton(value=str(shown.archive), interactive=True)
    return [made, words, archive, rows, shown.near.note, str(shown.picture), "", ""]


def _shown_error(sentence: str) -> gr.Error:
    return gr.Error(sentence, duration=None, title="That did not work", print_exception=False)


def _told(act: Callable[..., Any]) -> Callable[..., Any]:
    """``act``, whose errors for users appear on the page as the sentence that they are."""

    def told(*values: Any) -> Any:
        try:
            return act(*values)
        except (LoragenInferError, LoraTokenizerError, HyperConvError) as error:
            raise _shown_error(str(error)) from error
        except Exception as error:
            # What the machine has too little of, or refuses; anything else is a defect.
            if not (isinstance(error, OSError) or is_out_of_memory(error)):
                raise
            raise _shown_error(f"Not now: {reason_of(error)}; give shorter texts, or try again later.") from error

    return told

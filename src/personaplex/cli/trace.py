"""`personaplex trace`: codes and prompt tokens in, tokens and logits out, for people who port or check models."""

from __future__ import annotations

from pathlib import Path

import click

from personaplex.cli.options import check_sampling, model_option, note, note_blas, sampling_options
from personaplex.errors import UsageError
from personaplex.files import check_writable, whole_file


def _token_list(_: click.Context, __: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    try:
        return [int(token) for token in value.split(",") if token.strip()]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 7,19,4") from None


@click.command("trace")
@model_option
@click.option(
    "--voice",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A voice: .pt, safetensors (embeddings and cache), or safetensors with codes [1, 8, F].",
)
@click.option(
    "--prompt-tokens", callback=_token_list, metavar="7,19,...", help="The role prompt's tokens, tags included."
)
@click.option(
    "--user-codes",
    type=click.Path(path_type=Path),
    metavar="FILE",
    required=True,
    help="Safetensors with `user_codes` (or `codes`) [1, 8, N].",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", required=True, help="Safetensors to write.")
@click.option(
    "--timing",
    type=click.Choice(["ours", "reference"]),
    default="ours",
    show_default=True,
    help="Row n holds frame P + n (ours), or what the reference returns at that call, one frame earlier.",
)
@click.option("--depformer-steps", type=click.Choice(["8", "16"]), default="8", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Default: as `respond`.")
@sampling_options
def command(
    model: str,
    voice: Path | None,
    prompt_tokens: list[int] | None,
    user_codes: Path,
    out: Path,
    timing: str,
    depformer_steps: str,
    dtype: str | None,
    **choices: float | int | bool | None,
) -> None:
    """Run the language model on codes and write every token and logit.

    Writes `out` [1, 17, N] (int32, -9 where a call returned nothing), `text_logits` [N, text_card], `audio_logits`
    [N, 8, card] and `offset_after_prompt`. With neither voice nor prompt tokens there is no prompt at all.
    """
    import mlx.core as mx

    from personaplex.checkpoint.codes import read_codes
    from personaplex.checkpoint.folder import ModelFolder
    from personaplex.checkpoint.hub import LM_FILES, resolve
    from personaplex.checkpoint.voices import voice_from_file
    from personaplex.engine.generator import Generator
    from personaplex.engine.prompt import compose
    from personaplex.engine.sampling import Sampling
    from personaplex.engine.trace import run_trace
    from personaplex.units import N_CODEBOOKS

    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: the result is written as .safetensors")
    check_sampling(choices)
    check_writable(out)
    note_blas()
    folder = ModelFolder(resolve(model, LM_FILES))
    config = folder.config
    codes = read_codes(user_codes, ["user_codes", "codes"], N_CODEBOOKS, config.lm.card)
    named = voice is not None and not voice.suffix and not voice.exists()
    loaded = None if voice is None else folder.voices.load(str(voice)) if named else voice_from_file(voice)
    prompt = compose(config, loaded, prompt_tokens)
    lm = folder.load_lm(int(depformer_steps), getattr(mx, dtype) if dtype else None)
    own = config.sampling
    sampling = Sampling(
        text_temperature=_or(choices["text_temp"], own.text_temp),
        text_top_k=int(_or(choices["text_top_k"], own.text_top_k)),
        audio_temperature=_or(choices["audio_temp"], own.audio_temp),
        audio_top_k=int(_or(choices["audio_top_k"], own.audio_top_k)),
        repetition_penalty=_or(choices["repetition_penalty"], 1.0),
        greedy=bool(choices["greedy"]),
    )
    seed = int(choices["seed"] or 0)
    trace = run_trace(Generator(lm, config), prompt, codes, sampling, seed, shifted=timing == "reference")
    with whole_file(out) as temporary:
        mx.save_safetensors(str(temporary), trace)
    note(f"wrote {out}: {codes.shape[2]} frames after a prompt of {prompt.n_frames}")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value

"""The models that `init` proposes: a short list by task, language, length and memory, each with its usual rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ftscale.init.device import Machine
from ftscale.init.draft import words

BYTES_TRAINED = 16.0
"""Of a weight that Adam trains: itself, its gradient and two states in fp32; in bf16 with an fp32 master as many."""
BYTES_FROZEN = 2.0
"""Of a weight in bf16 under an adapter."""
ACTIVATIONS_GIB = 4.0
"""Left for activations where no plan was made."""
LORA_LR = 2e-4
"""Ten times the rate of all weights (Biderman et al. 2024, arXiv:2405.09673)."""


@dataclass(frozen=True)
class Known:
    """A model of the hub. Sizes and positions are those of its config.json."""

    name: str
    millions: float
    """Parameters."""
    lr: float
    """Peak rate for all weights with AdamW."""
    about: str
    positions: int | None = None
    """Longest input in tokens; None = it has no limit of its own."""
    head_lr: float | None = None

    @property
    def trained_gib(self) -> float:
        """Memory for training all weights, without activations."""
        return self.millions * 1e6 * BYTES_TRAINED / 2**30

    @property
    def frozen_gib(self) -> float:
        """Memory under an adapter, without activations."""
        return self.millions * 1e6 * BYTES_FROZEN / 2**30


MINILM = Known("sentence-transformers/all-MiniLM-L6-v2", 22.7, 2e-4, "a small quick encoder for English", 512, 1e-3)
MINILM_MANY = Known(
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
    117.7,
    1e-4,
    "a small encoder for 50 languages",
    512,
    1e-3,
)
MODERNBERT = Known("answerdotai/ModernBERT-base", 149.0, 5e-5, "a newer encoder for English", 8192)
MMBERT = Known("jhu-clsp/mmBERT-base", 307.0, 3e-5, "a newer encoder for many languages", 8192)
XLM_ROBERTA = Known("FacebookAI/xlm-roberta-base", 278.0, 2e-5, "an encoder for 100 languages", 512)
CASED = Known("distilbert/distilbert-base-cased", 65.2, 5e-5, "a small encoder that tells capitals apart", 512)
CASED_LARGER = Known("google-bert/bert-base-cased", 108.3, 3e-5, "an encoder that tells capitals apart", 512)
CASED_MANY = Known(
    "distilbert/distilbert-base-multilingual-cased", 134.7, 5e-5, "a small encoder for 104 languages", 512
)
FLAN_SMALL = Known("google/flan-t5-small", 77.0, 5e-4, "a small T5 that follows instructions, for English")
FLAN_BASE = Known("google/flan-t5-base", 247.6, 3e-4, "a T5 that follows instructions, for English")
MT5 = Known("google/mt5-small", 300.2, 5e-4, "a small T5 for 101 languages, which has not learned any task yet")
M2M100 = Known("facebook/m2m100_418M", 483.9, 3e-5, "translates between 100 languages", 1024)
MARIAN_MILLIONS = 76.0
MARIAN_POSITIONS = 512
SMOL = Known("HuggingFaceTB/SmolLM2-135M", 134.5, 1e-4, "a small language model for English", 8192)
SMOL_CHAT = Known("HuggingFaceTB/SmolLM2-135M-Instruct", 134.5, 5e-5, "a small chat model for English", 8192)
QWEN = Known("Qwen/Qwen2.5-0.5B", 494.0, 2e-5, "a small language model for many languages", 32768)
QWEN_CHAT = Known("Qwen/Qwen2.5-0.5B-Instruct", 494.0, 2e-5, "a small chat model for many languages", 32768)
QWEN_1B = Known("Qwen/Qwen2.5-1.5B", 1543.7, 1e-5, "a language model for many languages", 32768)
QWEN_1B_CHAT = Known("Qwen/Qwen2.5-1.5B-Instruct", 1543.7, 1e-5, "a chat model for many languages", 32768)
QWEN_7B = Known("Qwen/Qwen2.5-7B", 7615.6, 1e-5, "a language model for many languages", 32768)
QWEN_7B_CHAT = Known("Qwen/Qwen2.5-7B-Instruct", 7615.6, 1e-5, "a chat model for many languages", 32768)
CONVNEXT_ATTO = Known(
    "facebook/convnextv2-atto-1k-224", 3.7, 2e-4, "a small convolutional net of 224 pixels", head_lr=2e-3
)
CONVNEXT_TINY = Known("facebook/convnext-tiny-224", 28.6, 1e-4, "a convolutional net of 224 pixels", head_lr=1e-3)

MARIAN = frozenset(words("ar da de es fi fr it nl ru sv zh"))
"""Languages that Helsinki-NLP's models translate from English and into it, by their codes."""
M2M100_CODES = frozenset(
    words(
        "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu "
        "hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt "
        "ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu"
    )
)
"""The languages of M2M100 (Fan et al. 2020, arXiv:2010.11125)."""


def encoder(machine: Machine, *, english: bool, tokens: float) -> Known:
    """Return an encoder for classes of texts, nearly all of which have so many tokens or fewer."""
    if tokens > 512:
        return MODERNBERT if english else MMBERT
    if machine.gpu:
        return MODERNBERT if english else XLM_ROBERTA
    return MINILM if english else MINILM_MANY


def cased_encoder(machine: Machine, *, english: bool, tokens: float) -> Known:
    """Return an encoder for tags of words, for which capitals count."""
    if tokens > 512:
        return MODERNBERT if english else MMBERT
    if machine.gpu:
        return CASED_LARGER if english else XLM_ROBERTA
    return CASED if english else CASED_MANY


def encoder_decoder(machine: Machine, *, english: bool, languages: tuple[str, str] | None) -> Known:
    """Return a model that writes a text from a text. `languages`: codes of both, where it is a translation."""
    if languages and "en" in languages and set(languages) - {"en"} <= MARIAN:
        name = f"Helsinki-NLP/opus-mt-{languages[0]}-{languages[1]}"
        about = f"translates {languages[0]} to {languages[1]} already"
        return Known(name, MARIAN_MILLIONS, 3e-5, about, MARIAN_POSITIONS)
    if languages and set(languages) <= M2M100_CODES:
        return M2M100
    if not english:
        return MT5
    return FLAN_BASE if machine.gpu else FLAN_SMALL


def language_model(machine: Machine, *, english: bool, chat: bool, tools: bool = False) -> Known:
    """Return the largest language model of the list that an adapter lets train here; small ones without a GPU.

    `tools`: the template must have them, which that of the smallest has not.
    """
    if not machine.gpu:
        if english and not tools:
            return SMOL_CHAT if chat else SMOL
        return QWEN_CHAT if chat else QWEN
    sizes: Sequence[Known] = (QWEN_7B_CHAT, QWEN_1B_CHAT, QWEN_CHAT) if chat else (QWEN_7B, QWEN_1B, QWEN)
    room = machine.device.memory_gib - ACTIVATIONS_GIB
    return next((known for known in sizes if known.frozen_gib < room), sizes[-1])


def image_model(machine: Machine) -> Known:
    """Return an image classifier."""
    return CONVNEXT_TINY if machine.gpu else CONVNEXT_ATTO

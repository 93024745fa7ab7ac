"""All settings, as frozen dataclasses: the only home of defaults. `conversion` turns them into ConfigDicts and back.

`None` means off, or "derived" where the field says from what. A `Variant` field holds one of several small dataclasses:
a variant is chosen by its type, which has only its own settings. Invalid combinations raise ConfigError at
construction. Widths and lengths count elements, rates are per step, probabilities lie in [0, 1).
"""

# ruff: noqa: F403 — re-exports every public name of these modules, so that a new variant is listed in one place only
from gpt_jax.config.adapter import *
from gpt_jax.config.attention import *
from gpt_jax.config.checks import require as require
from gpt_jax.config.data import *
from gpt_jax.config.faults import *
from gpt_jax.config.mesh import *
from gpt_jax.config.model import *
from gpt_jax.config.norm import *
from gpt_jax.config.position import *
from gpt_jax.config.questions import *
from gpt_jax.config.recurrent import *
from gpt_jax.config.run import *
from gpt_jax.config.score import *
from gpt_jax.config.sharing import *
from gpt_jax.config.tasks import *
from gpt_jax.config.training import *
from gpt_jax.config.values import *

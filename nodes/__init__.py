"""The nodes of the pack: what a user drags. Schema, one call into host/, return."""

from .choosing import NODES as _CHOOSING
from .cogvideox import NODES as _COGVIDEOX
from .cogvideox_conditioning import NODES as _COGVIDEOX_CONDITIONING
from .cogvideox_control import NODES as _COGVIDEOX_CONTROL
from .cogvideox_sampling import NODES as _COGVIDEOX_SAMPLING
from .cogvideox_tora import NODES as _COGVIDEOX_TORA
from .cogvideox_video import NODES as _COGVIDEOX_VIDEO
from .editing import NODES as _EDITING
from .faster import NODES as _FASTER
from .lora import NODES as _LORA
from .prompts import NODES as _PROMPTS
from .sana import NODES as _SANA
from .sana_control import NODES as _SANA_CONTROL
from .sana_guidance import NODES as _SANA_GUIDANCE
from .sana_pictures import NODES as _SANA_PICTURES
from .sana_sampling import NODES as _SANA_SAMPLING
from .sana_sprint import NODES as _SANA_SPRINT
from .sana_video import NODES as _SANA_VIDEO
from .weights import NODES as _WEIGHTS

NODES = (_SANA + _SANA_PICTURES + _SANA_SPRINT + _SANA_CONTROL + _SANA_GUIDANCE
         + _COGVIDEOX + _COGVIDEOX_CONDITIONING + _COGVIDEOX_CONTROL + _COGVIDEOX_SAMPLING + _SANA_SAMPLING + _SANA_VIDEO
         + _COGVIDEOX_TORA + _COGVIDEOX_VIDEO + _EDITING + _LORA + _WEIGHTS + _FASTER + _PROMPTS + _CHOOSING)
